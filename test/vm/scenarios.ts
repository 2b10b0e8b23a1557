/** What is played in a virtual machine whose kernel tracks changed pages, with each CRIU. */
import { mkdirSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { decodeDumpStats } from '../../lib/format/stats.ts'
import { formatSize } from '../../lib/size.ts'
import { startHost } from '../support/host.ts'
import { dirtyingLoad, patternLoad } from '../support/loads.ts'
import { run, temporary } from '../support/run.ts'
import { staged } from '../support/stage.ts'

export interface Scenario {
  name: string
  /** Why it cannot be played, if it cannot. */
  missing?: () => string | undefined
  /** Throws if something is not as it must be; returns figures to be shown. */
  play(criu: string): Promise<string>
}

function expect(is: boolean, what: string): void {
  if (!is) throw new Error(what)
}

async function done(program: string, args: readonly string[]): Promise<void> {
  const { code, stderr } = await run(program, args)
  expect(code === 0, `${program} ${args.join(' ')}: exit code ${code}\n${stderr}`)
}

const frozenMs = (directory: string): number =>
  decodeDumpStats(readFileSync(join(directory, 'stats-dump'))).frozenTime / 1000
const pageBytes = (directory: string): number =>
  readdirSync(directory)
    .filter((name) => name.startsWith('pages-'))
    .reduce((sum, name) => sum + statSync(join(directory, name)).size, 0)

/** A dump that leaves the process as it is: how long one that sends everything takes. */
async function fullDump(criu: string, pid: number, folder: string): Promise<{ bytes: number; frozen: number }> {
  const directory = join(folder, 'whole')
  mkdirSync(directory)
  await done(criu, ['dump', '-R', '-t', String(pid), '-D', directory])
  const seen = { bytes: pageBytes(directory), frozen: frozenMs(directory) }
  rmSync(directory, { recursive: true })
  return seen
}

const handOver: Scenario = {
  name: 'a hand-over through proxy and cache',
  async play(criu) {
    await staged(criu, patternLoad(16), async (stage) => {
      const { cache, port } = await stage.cache('--restore', '--criu', criu)
      const proxy = await stage.proxy(port, '--until', 'running')
      const { code, stderr } = await stage.dump().ended
      expect(code === 0, stderr + proxy.stderr() + cache.stderr())
      await stage.arrived()
    })
    return ''
  },
}

const rounds: Scenario = {
  name: 'three pre-dumps and a dump in directories, flattened and restored',
  async play(criu) {
    const { path, remove } = temporary()
    const host = await startHost()
    const load = await dirtyingLoad(256, 5).start(path)
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
        `frozen for ${frozen.toFixed(0)} ms, a full dump for ${full.frozen.toFixed(0)} ms`
      )
    } finally {
      load.kill()
      await host.stop()
      remove()
    }
  },
}

export const scenarios: Scenario[] = [handOver, rounds]
