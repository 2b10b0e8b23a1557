/** What is promised of memory, with the real CRIU. */
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { contenders } from '../../lib/bench/contenders.ts'
import { residentBytes } from '../../lib/bench/machine.ts'
import { startMemory } from '../../lib/bench/target-process.ts'
import { Course } from '../../lib/bench/workload.ts'
import { real } from '../support/criu.ts'
import { root, temporary } from '../support/run.ts'

const test = suite('bench/ours')

/** A node, tsx and our code. */
const CACHE_ITSELF = 160 * 2 ** 20

if (typeof real === 'string') console.log(`skipped: ${real}`)
else {
  const { path: criu } = real
  test('with --release-early a cache and the process that it becomes never hold 1.15 times the process', async () => {
    const { path: folder, remove } = temporary()
    const ways = contenders({
      node: [process.execPath, '--import', join(root, 'node_modules', 'tsx', 'dist', 'loader.mjs')],
      scripts: join(root, 'scripts'),
      suffix: '.ts',
    })
    const loaded = await startMemory({ bytes: 2 ** 28, kind: 'random', folder })
    const course = new Course(criu, loaded, folder, new AbortController().signal)
    try {
      const size = residentBytes([loaded.pid])
      const figures = await ways.find(({ name }) => name === 'ferry-early')?.run(course)
      const peak = (figures?.bothPeak ?? 0) * size
      assert.ok(peak > size, `${peak} bytes of ${size}`)
      assert.ok(peak < 1.15 * size + CACHE_ITSELF, `${peak} bytes of ${size}`)
      await loaded.verify()
    } finally {
      await course.end()
      loaded.kill()
      remove()
    }
  })
}

test.run()
