/**
 * How long CRIU may send nothing while this process waits for it: a CRIU that is stopped or stuck must not keep its
 * tasks frozen for ever.
 *
 * What counts is that something comes, not how much. While a link does not take what is here, CRIU waits for us and
 * its time does not count. The limit is counted in ticks of a timer, not by the clock: so if this process was stopped
 * itself, it first reads what came meanwhile.
 */
import { Fault } from '../fault.ts'
import type { Condition } from './condition.ts'

export interface CriuTimeout {
  /** CRIU has sent something: its time begins anew. */
  heard(): void
  /** Waits for `work` that is not CRIU's: meanwhile its time does not count. */
  during<Result>(work: Promise<Result>): Promise<Result>
  /** CRIU's time also begins anew whenever `activity` is notified. */
  follow(activity: Condition | undefined): void
  /** CRIU is not waited for any more. May be called twice. */
  close(): void
}

/** Ticks of the timer within the limit. */
const TICKS = 4

/**
 * Calls `onSilent` with a `TIMEOUT` when CRIU was waited for and sent nothing for `limitMs`; not again before it was
 * heard.
 */
export function openCriuTimeout(limitMs: number, onSilent: (reason: Fault) => void): CriuTimeout {
  let silentTicks = 0
  /** Work that is waited for instead of CRIU. */
  let otherWork = 0
  let open = true
  const timer = setInterval(() => {
    silentTicks = otherWork > 0 ? 0 : silentTicks + 1
    if (silentTicks !== TICKS + 1) return
    onSilent(
      new Fault('TIMEOUT', `criu sent nothing for ${limitMs / 1000} s`, {
        hint:
          'is it stopped, or does a script of its own take as long? then a longer --timeout; ' +
          "see the dump's own log",
      }),
    )
  }, limitMs / TICKS).unref()
  const heard = (): void => {
    silentTicks = 0
  }
  return {
    heard,
    async during(work) {
      otherWork++
      try {
        return await work
      } finally {
        otherWork--
        heard()
      }
    },
    async follow(activity) {
      while (open && activity !== undefined) {
        await activity.wait()
        heard()
      }
    },
    close() {
      open = false
      clearInterval(timer)
    },
  }
}
