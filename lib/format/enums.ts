/** The words of the wire: what each number in a frame means. */
import { Fault } from '../fault.ts'

/** Reasons that cross the link, with the `Fault` code that each becomes. */
export const refusalCodes = [
  'FAILED_DUMP',
  'REFUSED',
  'EXISTS',
  'MISSING',
  'MEMORY',
  'TIMEOUT',
  'DIGEST',
  'ABORTED',
] as const
export type RefusalCode = (typeof refusalCodes)[number]

/** How far the source of a hand-over waits before it lets CRIU kill the tasks. */
export const untils = ['sealed', 'running'] as const
export type Until = (typeof untils)[number]

/**
 * What became of the source's tasks: they are gone; they run on, and so the target's must not; they run on as was asked
 * for.
 */
export const verdicts = ['go', 'drop', 'copy'] as const
export type Verdict = (typeof verdicts)[number]

/** What became of the target's: only the images are there; the tasks run; there are none. */
export const fates = ['stored', 'running', 'dropped'] as const
export type Fate = (typeof fates)[number]

/** How the bytes of a `packed` frame are compressed. */
export const codecNames = ['zstd', 'lz4'] as const
export type CodecName = (typeof codecNames)[number]

/** The word of a number. Throws `FORMAT`. */
export function enumOf<Word>(words: readonly Word[], number: number, type: string): Word {
  const word = words[number]
  if (word === undefined) throw new Fault('FORMAT', `a ${type} frame with the unknown word ${number}`)
  return word
}
