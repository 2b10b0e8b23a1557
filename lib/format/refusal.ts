/** What a `refused` or `failed` frame says: a code, and a text that is short, and harmless where it is read. */
import { Fault } from '../fault.ts'
import { type RefusalCode, refusalCodes } from './enums.ts'

/** The code with which a fault of ours crosses the link. */
export function refusalOf({ code }: Fault): RefusalCode {
  return refusalCodes.find((known) => known === code) ?? 'REFUSED'
}

/** A daemon outlives its own bugs, for the sake of the snapshots that it holds: whatever was thrown, as a fault. */
export function asFault(error: unknown): Fault {
  return error instanceof Fault ? error : new Fault('IO', `this is a bug: ${String(error)}`, { cause: error })
}

/** Bytes of a text. */
export const LONGEST_REASON = 512

/** Without control characters: it ends up on somebody's terminal. */
export function harmless(text: string): string {
  return text.replace(/\p{C}/gu, '?')
}

/** At most LONGEST_REASON bytes; a character that is cut becomes U+FFFD, three bytes. */
export function cutText(text: string): Buffer {
  const cut = Buffer.from(text).subarray(0, LONGEST_REASON - 3)
  return Buffer.from(cut.toString('utf8')).subarray(0, LONGEST_REASON)
}
