/** Promises to wait for, beside descriptors. */
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'

/** Rejects with the signal's reason, when it is aborted. */
export function rejectWhenAborted(signal: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    if (signal.aborted) reject(signal.reason)
    signal.addEventListener('abort', () => reject(signal.reason), { once: true })
  })
}

/**
 * Aborts `controller` when `signal` is aborted, with its reason, until the returned function is called. For a signal
 * that lives as long as a daemon: `AbortSignal.any` would leave a reference in it for ever (Node 20.20).
 */
export function abortWith(controller: AbortController, signal: AbortSignal): () => void {
  const abort = (): void => controller.abort(signal.reason)
  if (signal.aborted) abort()
  else signal.addEventListener('abort', abort)
  return () => signal.removeEventListener('abort', abort)
}

/**
 * Resolves after `ms` milliseconds. Rejects with the signal's reason. Without `ref` it does not keep the process
 * alive.
 */
export async function sleep(ms: number, signal: AbortSignal, ref = true): Promise<void> {
  await setTimeout(ms, undefined, { ref, signal }).catch(() => {
    throw signal.reason
  })
}

/**
 * Rejects with `TIMEOUT` after `ms` milliseconds, or with the signal's reason, which ends the timer. Does not keep
 * the process alive. `what` begins the message: `what` within 5 s.
 */
export async function rejectAfter(ms: number, what: string, signal: AbortSignal): Promise<never> {
  await sleep(ms, signal, false)
  throw new Fault('TIMEOUT', `${what} within ${ms / 1000} s`)
}

export interface Deferred<Value> {
  promise: Promise<Value>
  resolve: (value: Value) => void
  reject: (reason: unknown) => void
}

/** A promise that is settled from outside. A rejection that nobody waits for is no error. */
export function defer<Value>(): Deferred<Value> {
  let resolve!: (value: Value) => void
  let reject!: (reason: unknown) => void
  const promise = new Promise<Value>((...settle) => {
    ;[resolve, reject] = settle
  })
  promise.catch(() => {})
  return { promise, resolve, reject }
}
