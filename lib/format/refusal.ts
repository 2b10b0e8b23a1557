import { Fault } from '../fault.ts'
import type { RefusalCode } from './enums.ts'

const passedOn: readonly string[] = ['FAILED_DUMP', 'EXISTS', 'MISSING', 'MEMORY', 'TIMEOUT', 'DIGEST', 'ABORTED']

/** The code with which a fault of ours crosses the link. */
export function refusalOf(fault: Fault): RefusalCode {
  return passedOn.includes(fault.code) ? (fault.code as RefusalCode) : 'REFUSED'
}

/** A daemon outlives its own bugs, for the sake of the snapshots that it holds: whatever was thrown, as a fault. */
export function asFault(error: unknown): Fault {
  return error instanceof Fault ? error : new Fault('IO', `this is a bug: ${String(error)}`, { cause: error })
}
