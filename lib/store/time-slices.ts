/** Long work in slices, so that this process answers others meanwhile. */
import { setImmediate } from 'node:timers/promises'

const LONGEST_SLICE_MS = 10
/** Work for which nobody waits keeps others less long. */
const LONGEST_BACKGROUND_SLICE_MS = 1

/** Runs a generator to its end. Where it yields, and `longestMs` have passed since the last time, others have a turn. */
export async function runInSlices<Result>(
  work: Generator<unknown, Result>,
  longestMs = LONGEST_SLICE_MS,
): Promise<Result> {
  for (let since = performance.now(); ; ) {
    const step = work.next()
    if (step.done === true) return step.value
    if (performance.now() - since < longestMs) continue
    await setImmediate()
    since = performance.now()
  }
}

/** Runs a generator for which nobody waits, after what is under way now. */
export async function runInBackground(work: Generator<unknown, void>): Promise<void> {
  await setImmediate()
  await runInSlices(work, LONGEST_BACKGROUND_SLICE_MS)
}
