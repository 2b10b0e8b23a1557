/** The scenarios, played in a virtual machine with each CRIU that was fetched. It is booted once. */
import { existsSync } from 'node:fs'
import { suite } from 'uvu'
import { compiled } from '../support/guest.ts'
import { temporary } from '../support/run.ts'
import { runInVm, vmMissing } from '../support/vm.ts'
import type { Played } from './play.ts'
import { criuOf, playedWith, releaseOf, releases } from './scenario.ts'
import { scenarios } from './scenarios.ts'

const test = suite('vm/vm')
const LIMIT_MS = 19 * 60_000

async function playAll(criu: string[]): Promise<Played[]> {
  const { path, remove } = temporary()
  const all: Played[] = []
  try {
    const play = compiled(path)('play')
    const set = ['env', 'FERRY_SLOWER=4', `FERRY_SCENARIO=${process.env.FERRY_SCENARIO ?? ''}`]
    const ran = await runInVm({ command: [...set, ...play, ...criu], share: path, limitMs: LIMIT_MS }, (line) => {
      if (!line.startsWith('played: ')) return
      const played = JSON.parse(line.slice('played: '.length)) as Played
      all.push(played)
      const { scenario, seconds, figures = 'FAILED' } = played
      if (played.skipped === undefined)
        console.log(`figures: ${releaseOf(played.criu)}: ${scenario}: ${figures} (${seconds} s)`)
    })
    const { code, bootMs, jobMs, output } = ran
    console.log(`figures: booted in ${(bootMs / 1000).toFixed(1)} s, ran for ${(jobMs / 1000).toFixed(1)} s`)
    if (code !== 0) console.log(output, `exit code ${code}`)
    return all
  } finally {
    remove()
  }
}

const missing = vmMissing()
if (missing !== undefined) console.log(`skipped: ${missing}`)
else {
  const criu = releases.map(criuOf).filter((path) => existsSync(path))
  const all = await playAll(criu)
  for (const path of criu) {
    for (const { name } of playedWith(path, scenarios)) {
      const played = all.find((one) => one.scenario === name && one.criu === path)
      if (played?.skipped !== undefined) console.log(`skipped: ${name}: ${played.skipped}`)
      else
        test(`${name}, with the CRIU of ${releaseOf(path)}`, () => {
          if (played?.figures === undefined) throw new Error(played?.error ?? 'it was not played')
        })
    }
  }
}

test.run()
