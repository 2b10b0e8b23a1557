/**
 * How long CRIU may say nothing while somebody waits for it, with its tasks frozen: a stopped or stuck one must not hold them for ever.
 *
 * What counts is that something comes, not how much. While a link does not take what is here CRIU is not waited for, it waits for us.
 * Time is counted in parts of the limit that a timer sees go by: so one who was stopped himself, and comes back to a clock far
 * ahead, hears first what has come meanwhile.
 */
import { Fault } from '../fault.ts'
import type { Condition } from './condition.ts'

export interface CriuTimeout {
  /** CRIU has said something. */
  heard(): void
  /** Waits for `work`, which is not CRIU's. */
  during<Result>(work: Promise<Result>): Promise<Result>
  /** Hears what this tells, too. */
  follow(news: Condition | undefined): void
  /** Nothing more is waited for. May be called twice. */
  close(): void
}

const PARTS = 4

/** Calls `onSilent` once, with a `TIMEOUT`, when CRIU was waited for and said nothing for `limitMs`; not again before it was heard. */
export function openCriuTimeout(limitMs: number, onSilent: (reason: Fault) => void): CriuTimeout {
  let quiet = 0
  let others = 0
  let open = true
  const timer = setInterval(() => {
    quiet = others > 0 ? 0 : quiet + 1
    if (quiet !== PARTS + 1) return
    onSilent(
      new Fault('TIMEOUT', `criu sent nothing for ${limitMs / 1000} s`, {
        hint: "is it stopped, or does a script of its own take as long? then a longer --timeout; see the dump's own log",
      }),
    )
  }, limitMs / PARTS).unref()
  const heard = (): void => {
    quiet = 0
  }
  return {
    heard,
    async during(work) {
      others++
      try {
        return await work
      } finally {
        others--
        heard()
      }
    },
    follow(news) {
      const hear = async (told: Condition): Promise<void> => {
        while (open) {
          await told.wait()
          heard()
        }
      }
      if (news !== undefined) void hear(news)
    },
    close() {
      open = false
      clearInterval(timer)
    },
  }
}
