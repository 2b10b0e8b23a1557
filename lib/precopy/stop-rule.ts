/** Decides when the rounds of a pre-copy stop: when another one would not shorten the freeze enough. Pure. */
import { PAGE_BYTES } from '../format/pagemap.ts'

export interface CompletedRound {
  /** How many it sent. */
  pages: number
  /** From its first page until the target had all. */
  ms: number
  /** How long the tasks were frozen for it, by CRIU's statistics. */
  frozenMs: number
}

export interface StopRule {
  /** The most rounds; at least 1. */
  mostRounds: number
  /** Bytes: a round that sent no more is the last. */
  floor: number
  /** Undefined: the freeze is to be as short as rounds can make it. */
  downtimeGoalMs: number | undefined
}

export type StopReason =
  /** The last round sent no more than the floor. */
  | 'little is left'
  /** The predicted freeze is within the goal. */
  | 'that is short enough'
  /** The process dirties its memory as fast as it is sent. */
  | 'rounds no longer shrink'
  | 'rounds are used up'

/** Rounds no longer shrink when one sends more than this part of the one before. */
const SHRINKING = 0.9

/** Why no other round follows; undefined where one does, as after no round at all. */
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
 * Predicts how long the tasks will be frozen for the last dump and the transfer of its pages, in ms: as long as for the
 * last round, plus the time for as many pages at the rate of the largest round.
 */
export function predictedFreezeMs(rounds: readonly CompletedRound[]): number {
  const last = rounds.at(-1)
  if (last === undefined) return Number.POSITIVE_INFINITY
  const largest = rounds.reduce((most, round) => (round.pages > most.pages ? round : most))
  return last.frozenMs + (last.pages * largest.ms) / Math.max(1, largest.pages)
}
