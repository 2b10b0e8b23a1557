/**
 * Reports failures that a peer can cause as often as it likes. The first ones are reported as they come; those that
 * follow at once are counted, and the count is reported once a second. So the log says what fails and for whom, and no
 * peer can fill the disk with it.
 */
import { Fault } from '../fault.ts'
import { asFault } from '../format/refusal.ts'
import type { Report } from '../progress.ts'

const SECOND_MS = 1000
/** Origins that are told apart; all others are counted as one. */
const MOST_ORIGINS = 64
const OTHERS = 'other peers'

/** Failures of one origin within the present second. */
interface Tally {
  /** Lines written. */
  reported: number
  /** Failures that were only counted. */
  counted: number
  last: Error
}

/** Writes at most `mostLines` lines a second for each origin. */
export function openFailureLog(report: Report, mostLines = 1) {
  const tallies = new Map<string, Tally>()
  let timer: NodeJS.Timeout | undefined

  function reportCounts(): void {
    for (const [origin, tally] of [...tallies]) {
      const { counted, last } = tally
      if (counted === 0) tallies.delete(origin)
      else {
        // This line is the only one of the next second.
        Object.assign(tally, { reported: mostLines, counted: 0 })
        const what = `${counted} more ${counted === 1 ? 'connection' : 'connections'} of ${origin}`
        const { code, hint } = asFault(last)
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
    /** `origin`: failures of one user or address are counted together. `what`: what failed, for the line in the log. */
    tell(origin: string, what: string, fault: Error): void {
      const key = tallies.has(origin) || tallies.size < MOST_ORIGINS ? origin : OTHERS
      const tally = tallies.get(key) ?? { reported: 0, counted: 0, last: fault }
      tallies.set(key, tally)
      timer ??= setInterval(reportCounts, SECOND_MS).unref()
      if (tally.reported < mostLines) {
        tally.reported++
        report({ event: 'failed', what, fault })
        return
      }
      tally.counted++
      tally.last = fault
    },
    /** Reports the counts that are not reported yet. */
    close(): void {
      reportCounts()
      stop()
    },
  }
}

export type FailureLog = ReturnType<typeof openFailureLog>
