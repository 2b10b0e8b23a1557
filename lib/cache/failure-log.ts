/**
 * Failures that a peer can cause as often as it likes: the first are told as they come, those that follow at once are counted, and the
 * count is told once a second. So a log says what happens and to whom, and nobody can fill the disk with it.
 */
import { Fault } from '../fault.ts'
import type { Report } from '../progress.ts'

export interface FailureLog {
  /** `source`: whose failures are counted together. `what`: what failed, for the line that tells it. */
  tell(source: string, what: string, fault: Error): void
  /** Tells what is counted and not told yet. */
  close(): void
}

const SECOND_MS = 1000
/** Sources that are told apart; the others are one. */
const MOST_SOURCES = 64
const OTHERS = 'other peers'

interface Tally {
  told: number
  more: number
  last: Error
}

/** At most `most` lines a second and source. */
export function openFailureLog(report: Report, most = 1): FailureLog {
  const tallies = new Map<string, Tally>()
  let timer: NodeJS.Timeout | undefined

  function tellCounts(): void {
    for (const [source, tally] of [...tallies]) {
      const { more, last } = tally
      if (more === 0) tallies.delete(source)
      else {
        // This line is the next second's.
        Object.assign(tally, { told: most, more: 0 })
        const what = `${more} more ${more === 1 ? 'connection' : 'connections'} of ${source}`
        const hint = last instanceof Fault ? last.hint : undefined
        const code = last instanceof Fault ? last.code : 'IO'
        report({ event: 'failed', what, fault: new Fault(code, `the last one: ${last.message}`, hint ? { hint } : {}) })
      }
    }
    if (tallies.size === 0) stop()
  }

  function stop(): void {
    clearInterval(timer)
    timer = undefined
  }

  return {
    tell(source, what, fault) {
      const key = tallies.has(source) || tallies.size < MOST_SOURCES ? source : OTHERS
      const tally = tallies.get(key) ?? { told: 0, more: 0, last: fault }
      tallies.set(key, tally)
      timer ??= setInterval(tellCounts, SECOND_MS).unref()
      if (tally.told < most) {
        tally.told++
        report({ event: 'failed', what, fault })
        return
      }
      tally.more++
      tally.last = fault
    },
    close() {
      tellCounts()
      stop()
    },
  }
}
