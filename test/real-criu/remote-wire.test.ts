/** A real CRIU through our proxy and our cache, by the wire of criu --remote between them. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { across } from '../support/across.ts'
import { real } from '../support/criu.ts'
import { daemons } from '../support/daemons.ts'
import { patternLoad } from '../support/loads.ts'
import { run, temporary } from '../support/run.ts'

const test = suite('real-criu/remote-wire')

const wire = ['--wire', 'criu-remote']

function byRemoteWire(script: boolean, criu: string): Promise<void> {
  return across(patternLoad(64), criu, {
    proxy: wire,
    cache: wire,
    dump: ({ source }) => (script ? ['--action-script', `${source}/post-dump`] : []),
    async sealed({ proxy, cache, source }) {
      await proxy.says(new RegExp(`snapshot ${source} sent: \\d+ images`))
      await cache.says(/sealed/)
    },
  })
}

if (typeof real === 'string') console.log(`skipped: ${real}`)
else {
  const { path, version } = real
  test(`a pattern of 64 MiB with CRIU ${version}: all of its memory is whole`, () => byRemoteWire(false, path))
  test('the same where criu waits at post-dump until all bytes have gone', () => byRemoteWire(true, path))
  for (const [what, options] of [
    ['whose own script fails at post-dump is no dump', undefined],
    ['with --leave-running is one', ['--leave-running']],
  ] as const) {
    test(`a dump ${what}, though all images are there and the process runs on`, async () => {
      const { path: folder, remove } = temporary()
      const both = await daemons({ proxy: wire, cache: wire })
      const started = await patternLoad(8).start(folder)
      try {
        const script = join(folder, 'script')
        writeFileSync(script, '#!/bin/sh\n[ $CRTOOLS_SCRIPT_ACTION != post-dump ]\n', { mode: 0o700 })
        const more = options ?? ['--action-script', script]
        const dumped = await run(path, ['dump', '--stream', '-t', String(started.pid), '-D', both.source, ...more])
        assert.is(dumped.code === 0, options !== undefined)
        await both.cache.says(/sealed|failed: the stream ended without inventory.img/)
        assert.is(/sealed/.test(both.cache.stderr()), options !== undefined, both.proxy.stderr())
        await started.runsOn()
      } finally {
        started.kill()
        await both.stop()
        remove()
      }
    })
  }
  test('where the cache is gone a criu that waits for us fails, and the process runs on', async () => {
    const { path: folder, remove } = temporary()
    const both = await daemons({ proxy: ['--wire', 'criu-remote', '--timeout', '1'] })
    await both.cache.stop()
    const started = await patternLoad(8).start(folder)
    try {
      const gate = ['--action-script', `${both.source}/post-dump`]
      const dumped = await run(path, ['dump', '--stream', '-t', String(started.pid), '-D', both.source, ...gate])
      assert.is.not(dumped.code, 0)
      await both.proxy.says(/failed: cannot connect/)
      await started.runsOn()
    } finally {
      started.kill()
      await both.stop()
      remove()
    }
  })
}

test.run()
