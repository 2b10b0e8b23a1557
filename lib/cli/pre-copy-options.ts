/** The options about when to stop pre-copying. */
import { parseSize } from '../size.ts'
import { wholeNumber } from './parse.ts'

export const preCopyOptions = {
  'max-rounds': { type: 'string', default: '8' },
  floor: { type: 'string', default: '1M' },
  'downtime-goal': { type: 'string' },
} as const

/** The part of the usage text about them. */
export const preCopyHelp = `rounds go on while each sends at least a tenth less than the one before, until one of:
      --downtime-goal MS   the freeze that is predicted is that short
      --floor SIZE         a round sent no more than SIZE (default: 1M)
      --max-rounds N       there were N, 1 to 1000 (default: 8)`

const MOST_ROUNDS = 1000
/** A minute is no downtime goal. */
const LONGEST_GOAL_MS = 60_000

export interface StopRuleChoice {
  mostRounds: number
  /** Bytes. */
  floor: number
  downtimeGoalMs: number | undefined
}

/** Throws `USAGE`. */
export function ruleOf(values: { 'max-rounds': string; floor: string; 'downtime-goal'?: string }): StopRuleChoice {
  const goal = values['downtime-goal']
  return {
    mostRounds: wholeNumber('--max-rounds', values['max-rounds'], 1, MOST_ROUNDS),
    floor: parseSize(values.floor),
    downtimeGoalMs: goal === undefined ? undefined : wholeNumber('--downtime-goal', goal, 0, LONGEST_GOAL_MS),
  }
}
