/**
 * Runs in the virtual machine: play.js CRIU... plays every scenario with every CRIU, and tells how each ended, a line
 * of JSON each.
 */
import { playedWith } from './scenario.ts'
import { scenarios } from './scenarios.ts'

export interface Played {
  scenario: string
  criu: string
  seconds: number
  /** Figures, if it went well. */
  figures?: string
  error?: string
  skipped?: string
}

const LIMIT_MS = 480_000

for (const criu of process.argv.slice(2)) {
  for (const { name, missing, play } of playedWith(criu, scenarios)) {
    const begun = performance.now()
    const tell = (how: Omit<Played, 'scenario' | 'criu' | 'seconds'>): void => {
      const seconds = Math.round((performance.now() - begun) / 100) / 10
      console.log(`played: ${JSON.stringify({ scenario: name, criu, seconds, ...how } satisfies Played)}`)
    }
    const why = missing?.(criu)
    if (why !== undefined) {
      tell({ skipped: why })
      continue
    }
    const late = new Promise<never>((_, reject) => {
      setTimeout(() => reject(new Error(`not done after ${LIMIT_MS / 1000} s`)), LIMIT_MS).unref()
    })
    try {
      tell({ figures: await Promise.race([play(criu), late]) })
    } catch (error) {
      tell({ error: (error as Error).stack ?? String(error) })
    }
  }
}
process.exit()
