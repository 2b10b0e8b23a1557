/** What roles wait for, besides descriptors. */
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'

/** Rejects when the signal comes. */
export function rejectWhenAborted(signal: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    if (signal.aborted) reject(signal.reason)
    signal.addEventListener('abort', () => reject(signal.reason), { once: true })
  })
}

/** Rejects with `TIMEOUT` after `ms`, or with `signal`, which ends the timer; does not keep the process alive. */
export async function rejectAfter(ms: number, what: string, signal: AbortSignal): Promise<never> {
  await setTimeout(ms, undefined, { ref: false, signal }).catch(() => {
    throw signal.reason
  })
  throw new Fault('TIMEOUT', `${what} within ${ms / 1000} s`)
}

export interface Deferred<Value> {
  promise: Promise<Value>
  resolve: (value: Value) => void
  reject: (reason: unknown) => void
}

/** A promise that is settled from outside; nobody need wait for it. */
export function defer<Value>(): Deferred<Value> {
  let [resolve, reject]: [(value: Value) => void, (reason: unknown) => void] = [() => {}, () => {}]
  const promise = new Promise<Value>((yes, no) => {
    ;[resolve, reject] = [yes, no]
  })
  promise.catch(() => {})
  return { promise, resolve, reject }
}
