/** Runs long work in slices, so that this process does other work meanwhile. */
import { setImmediate } from 'node:timers/promises'

const LONGEST_SLICE_MS = 10
/** Nobody waits for background work, so it holds up other work for less time. */
const LONGEST_BACKGROUND_SLICE_MS = 1

/** Runs an iterator to its end. Other work has a turn where the iterator yields after `longestMs` or more. */
export async function runInSlices<Result>(
  work: Iterator<unknown, Result>,
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

/** Runs a generator as background work, which begins after the current turn of the event loop. */
export async function runInBackground(work: Generator<unknown, void>): Promise<void> {
  await setImmediate()
  await runInSlices(work, LONGEST_BACKGROUND_SLICE_MS)
}
