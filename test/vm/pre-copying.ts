/** Scenarios of pre-copy: rounds to the cache, and the hand-over of what changed. */
import { join } from 'node:path'
import { formatSize } from '../../lib/size.ts'
import { dirtyingLoad } from '../support/loads.ts'
import { start } from '../support/run.ts'
import { type Stage, staged } from '../support/stage.ts'
import { expect, fullDump, type Scenario } from './scenario.ts'

const MIB = 256
const load = dirtyingLoad(MIB, 5)

/** What pre-copy says of each round, in bytes, and how long the last dump held the process, in ms. */
function said(stderr: string): { rounds: number[]; frozen: number } {
  const rounds = [...stderr.matchAll(/round \d+: (\d+) pages/g)].map(([, pages]) => Number(pages) * 4096)
  const [, seconds = ''] = /frozen for ([\d.]+) s/.exec(stderr) ?? []
  return { rounds, frozen: Number(seconds) * 1000 }
}

function preCopy({ folder, load }: Stage, criu: string, port: string) {
  const place = ['-D', join(folder, 'owed'), '--criu', criu, '--until', process.env.FERRY_UNTIL ?? 'running']
  const rounds = ['--max-rounds', '3', '--floor', '0']
  return start('pre-copy', ['-v', '-t', String(load.pid), '--port', port, ...place, ...rounds], { cwd: folder })
}

export const commandRounds: Scenario = {
  name: `pre-copy: three rounds of ${MIB} MiB of which 5 % change, and the hand-over`,
  async play(criu) {
    let figures = ''
    await staged(criu, load, async (stage) => {
      const full = await fullDump(criu, stage.load.pid, stage.folder)
      const { cache, port } = await stage.cache('--restore', '--criu', criu)
      const { code, stderr } = await preCopy(stage, criu, port).ended
      expect(code === 0, stderr + cache.stderr())
      console.log(stderr)
      await cache.says(/restored in/)
      console.log(cache.stderr())
      await stage.arrived()
      const { rounds, frozen } = said(stderr)
      const [, sent = ''] = /sent and sealed by the cache: \d+ images, ([^(]*) in/.exec(stderr) ?? []
      expect(rounds.length === 3, `${rounds.length} rounds`)
      expect(
        (rounds.at(-1) ?? 0) <= (rounds[0] ?? 0) / 10,
        `the last round has ${rounds.at(-1)} bytes, the first ${rounds[0]}`,
      )
      figures =
        `${rounds.map(formatSize).join(', ')}, then ${sent}, of ${formatSize(full.bytes)}; ` +
        `frozen for ${frozen.toFixed(0)} ms, a full dump for ${full.frozen.toFixed(0)} ms`
    })
    return figures
  },
}

export const preCopying: Scenario[] = [commandRounds]
