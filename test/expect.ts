/** What uvu does not have: a Fault by its code, and an end to every wait. */
import * as assert from 'uvu/assert'
import { Fault, type FaultCode } from '../lib/fault.ts'

/** Longer than anything here takes: a test that hangs fails. */
const LIMIT_MS = 30_000
/** Where everything else that the test does is over in a moment. */
const SOON_MS = 10_000 * Number(process.env.FERRY_SLOWER ?? 1)

/** The result of `work`; an error if it does not come. */
export async function within<Result>(
  work: Promise<Result>,
  what = 'what the test waits for',
  limitMs = LIMIT_MS,
): Promise<Result> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} did not come within ${limitMs / 1000} s`)), limitMs)
  })
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}

/** `act` throws a Fault of that code, which is returned. */
export function throwsFault(code: FaultCode, act: () => unknown, about = ''): Fault {
  try {
    act()
  } catch (error) {
    return isFault(code, error, about)
  }
  throw new Error(`${about} should throw ${code}`)
}

/** `work` rejects with a Fault of that code, which is returned. */
export async function rejectsFault(code: FaultCode, work: Promise<unknown>, about = ''): Promise<Fault> {
  const error = await reasonOf(work, about)
  return isFault(code, error, about)
}

/** What `work` rejects with. */
export async function reasonOf(work: Promise<unknown>, about = ''): Promise<unknown> {
  let failed = true
  const outcome = await within(
    work.then(
      () => {
        failed = false
      },
      (error: unknown) => error,
    ),
    about,
  )
  assert.ok(failed, `${about} should reject`)
  return outcome
}

function isFault(code: FaultCode, error: unknown, about: string): Fault {
  if (!(error instanceof Fault)) throw error
  assert.is(error.code, code, `${about}: ${error.message}`)
  return error
}

/** Runs `decode`; every error but a Fault is thrown. For what must not fail otherwise, whatever it is given. */
export function onlyFaults<Result>(decode: () => Result): Result | undefined {
  try {
    return decode()
  } catch (error) {
    if (!(error instanceof Fault)) throw error
    return undefined
  }
}

/** A daemon whose `says` has an end that comes long before that of the test. */
export function impatient<Daemon extends { says(pattern: RegExp): Promise<RegExpExecArray> }>(daemon: Daemon): Daemon {
  return { ...daemon, says: (pattern) => within(daemon.says(pattern), `what says ${pattern}`, SOON_MS) }
}

/** A few turns of the event loop: for showing that something does not happen. */
export async function turns(count = 50): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setImmediate(resolve))
}

/** Whether `work` is still running after some turns of the event loop. */
export async function waits(work: Promise<unknown>): Promise<boolean> {
  let over = false
  const end = (): void => {
    over = true
  }
  work.then(end, end)
  await turns()
  return !over
}
