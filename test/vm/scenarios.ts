/** What is played in a virtual machine whose kernel tracks changed pages, with each CRIU. */
import { mkdirSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { formatSize } from '../../lib/size.ts'
import { startHost } from '../support/host.ts'
import { dirtyingLoad } from '../support/loads.ts'
import { temporary } from '../support/run.ts'
import { preCopying } from './pre-copying.ts'
import { done, expect, frozenMs, fullDump, pageBytes, percent, type Scenario } from './scenario.ts'

const rounds: Scenario = {
  name: 'three pre-dumps and a dump in directories, flattened and restored',
  releases: ['sid'],
  async play(criu) {
    const { path, remove } = temporary()
    const host = await startHost()
    const load = await dirtyingLoad(64, 5).start(path)
    try {
      const full = await fullDump(criu, load.pid, path)
      const steps = ['pre-dump', 'pre-dump', 'pre-dump', 'dump'].map((step, index) => ({
        step,
        name: String(index + 1),
      }))
      const sizes: number[] = []
      for (const [index, { step, name }] of steps.entries()) {
        const directory = join(path, name)
        mkdirSync(directory)
        const parent = index === 0 ? [] : ['--prev-images-dir', `../${index}`]
        await done(criu, [step, '--track-mem', '-t', String(load.pid), '-D', directory, ...parent])
        sizes.push(pageBytes(directory))
      }
      await load.gone
      const [first = 0, last = 0] = [sizes[0], sizes.at(-1)]
      const frozen = frozenMs(join(path, '4'))
      await done('flatten', ['-D', join(path, '4'), '--to-dir', join(path, 'flat')])
      for (const { name } of steps) rmSync(join(path, name), { recursive: true })
      const [enter = '', ...options] = host.enter
      await done(enter, [...options, criu, 'restore', '-d', '-D', join(path, 'flat')])
      await load.verify(host.outerPid(load.pid))
      expect(last <= first / 10, `the last round has ${last} bytes, the first ${first}`)
      return (
        `${sizes.map(formatSize).join(', ')} of ${formatSize(full.bytes)}; ` +
        `the last is ${percent(last, first)} % of the first; frozen for ${frozen.toFixed(0)} ms, a ` +
        `full dump for ${full.frozen.toFixed(0)} ms`
      )
    } finally {
      load.kill()
      await host.stop()
      remove()
    }
  },
}

export const scenarios: Scenario[] = [rounds, ...preCopying]
