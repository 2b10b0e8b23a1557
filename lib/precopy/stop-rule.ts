/** When to stop pre-copying: whether one more round pays. Pure. */
import { PAGE_BYTES } from '../format/pagemap.ts'

/** A pre-dump: what it sent, and what it cost. */
export interface CompletedRound {
  pages: number
  /** From its first page until the target had them all. */
  ms: number
  /** How long the tasks stood still for it (CRIU's statistics). */
  frozenMs: number
}

export interface StopRule {
  /** At least 1. */
  mostRounds: number
  /** So few dirty bytes are sent while the process stands still. */
  floor: number
  /** Undefined: as short as rounds can make it. */
  downtimeGoalMs: number | undefined
}

export type StopReason =
  /** What is left is below the floor. */
  | 'little is left'
  /** The freeze that is predicted is short enough. */
  | 'that is short enough'
  /** The process dirties its memory as fast as it is sent. */
  | 'rounds no longer shrink'
  | 'rounds are used up'

/** A round that sends more than this part of what the one before sent gains nothing. */
const SHRINKING = 0.9

/** Why the round that was last is the last one; undefined where another one pays. `rounds`: at least one. */
export function stopReason(
  rounds: readonly CompletedRound[],
  { mostRounds, floor, downtimeGoalMs }: StopRule,
): StopReason | undefined {
  const [last, before] = [rounds.at(-1), rounds.at(-2)]
  if (last === undefined) return undefined
  if (last.pages * PAGE_BYTES <= floor) return 'little is left'
  if (downtimeGoalMs !== undefined && predictedFreezeMs(rounds) <= downtimeGoalMs) return 'that is short enough'
  if (before !== undefined && last.pages > SHRINKING * before.pages) return 'rounds no longer shrink'
  return rounds.length >= mostRounds ? 'rounds are used up' : undefined
}

/**
 * How long the tasks will stand still for the last dump and the way of its pages: it is taken to be like the last round, with as many
 * pages, at the rate of the largest.
 */
export function predictedFreezeMs(rounds: readonly CompletedRound[]): number {
  const last = rounds.at(-1)
  if (last === undefined) return Number.POSITIVE_INFINITY
  const largest = rounds.reduce((most, round) => (round.pages > most.pages ? round : most))
  return last.frozenMs + (last.pages * largest.ms) / Math.max(1, largest.pages)
}
