import { setImmediate as turn } from 'node:timers/promises'

const LONGEST_TURN_MS = 10
/** Others wait for less where nobody waits for us. */
const LONGEST_ASIDE_MS = 1

/** Does the work of a generator, and lets others have their turn after about `longestMs`, wherever it yields. */
export async function runInSlices<Result>(
  work: Generator<unknown, Result>,
  longestMs = LONGEST_TURN_MS,
): Promise<Result> {
  for (let since = performance.now(); ; ) {
    const step = work.next()
    if (step.done === true) return step.value
    if (performance.now() - since < longestMs) continue
    await turn()
    since = performance.now()
  }
}

/** Work that nobody waits for, when what is done now is done. */
export async function yieldSometimes(work: Generator<unknown, void>): Promise<void> {
  await turn()
  await runInSlices(work, LONGEST_ASIDE_MS)
}
