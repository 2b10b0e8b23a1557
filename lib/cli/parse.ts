import { Fault } from '../fault.ts'
import { parseSize } from '../size.ts'

/** A whole number between `least` and `most`. Throws `USAGE`. */
export function wholeNumber(flag: string, text: string, least: number, most: number): number {
  const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN
  if (value >= least && value <= most) return value
  throw new Fault('USAGE', `${flag} wants a number from ${least} to ${most}, not ${text}`)
}

/** A port to listen on; 0 if the kernel is to choose it, undefined if the option is not given. Throws `USAGE`. */
export function portOf(flag: string, text: string | undefined): number | undefined {
  return text === undefined ? undefined : wholeNumber(flag, text, 0, 65535)
}

/** The pid of a process, as `--tree PID`. Throws `USAGE`. */
export function readPid(text: string): number {
  return wholeNumber('--tree', text, 1, HIGHEST_PID)
}

/** PID_MAX_LIMIT of a 64-bit Linux. */
const HIGHEST_PID = 2 ** 22

/** Milliseconds from `--timeout SECONDS`, fractions allowed. Throws `USAGE`. */
export function timeoutMs(text: string): number {
  const seconds = /^\d{1,6}(\.\d+)?$/.test(text) ? Number(text) : Number.NaN
  if (seconds > 0) return Math.max(1, Math.round(seconds * 1000))
  throw new Fault('USAGE', `--timeout wants seconds, not ${text}`)
}

/** Bytes from a SIZE that is a multiple of 1 MiB. Throws `USAGE`. */
export function wholeMiB(flag: string, text: string): number {
  const bytes = parseSize(text)
  if (bytes > 0 && bytes % 2 ** 20 === 0) return bytes
  throw new Fault('USAGE', `${flag} wants whole MiB, not ${text}`)
}

/** One of some words. Throws `USAGE`. */
export function oneOf<Word extends string>(flag: string, text: string, words: readonly Word[]): Word {
  const word = words.find((candidate) => candidate === text)
  if (word !== undefined) return word
  throw new Fault('USAGE', `${flag} wants ${words.join(' or ')}, not ${text}`)
}

/** Whether one of the flags is given. Throws `USAGE` if more than one is. */
export function atMostOne(flags: Record<string, unknown>): boolean {
  const given = Object.entries(flags).filter(([, value]) => value !== undefined && value !== false)
  if (given.length < 2) return given.length === 1
  throw new Fault('USAGE', `${given.map(([flag]) => flag).join(' and ')} do not go together`, { hint: 'choose one' })
}

/** Throws `USAGE` if the flag is given together with one of the others. */
export function noneBeside(flag: string, value: unknown, others: Record<string, unknown>): void {
  for (const [other, given] of Object.entries(others)) atMostOne({ [flag]: value, [other]: given })
}

/** The value of a flag that must be there. Throws `USAGE`. */
export function required(flag: string, value: string | undefined, hint: string): string {
  if (value !== undefined) return value
  throw new Fault('USAGE', `${flag} is missing`, { hint })
}
