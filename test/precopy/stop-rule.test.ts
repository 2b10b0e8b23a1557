import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  type CompletedRound,
  predictedFreezeMs,
  type StopReason,
  type StopRule,
  stopReason,
} from '../../lib/precopy/stop-rule.ts'

const test = suite('precopy/stop-rule')

/** Each of so many pages, 1 ms for 100 of them, frozen for 50 ms. */
function rounds(...pages: number[]): CompletedRound[] {
  return pages.map((count) => ({ pages: count, ms: count / 100, frozenMs: 50 }))
}

const plain: StopRule = { mostRounds: 8, floor: 2 ** 20, downtimeGoalMs: undefined }

const cases: [what: string, pages: number[], rule: Partial<StopRule>, why: StopReason | undefined][] = [
  ['a first round says nothing of what is dirtied', [65_536], {}, undefined],
  ['a process of the size of the floor', [256], {}, 'little is left'],
  ['one page more', [257], {}, undefined],
  ['no floor, and nothing dirty', [65_536, 0], { floor: 0 }, 'little is left'],
  ['it shrinks', [65_536, 20_000, 6000], {}, undefined],
  ['below the floor', [65_536, 20_000, 200], {}, 'little is left'],
  ['as much again', [65_536, 20_000, 20_000], {}, 'rounds no longer shrink'],
  ['nine tenths', [65_536, 20_000, 18_000], {}, undefined],
  ['a little more than nine tenths', [65_536, 20_000, 18_001], {}, 'rounds no longer shrink'],
  ['more than before', [65_536, 2000, 40_000], {}, 'rounds no longer shrink'],
  ['the second as large as the first', [65_536, 65_536], {}, 'rounds no longer shrink'],
  ['eight of eight', [8e6, 4e6, 2e6, 1e6, 5e5, 2e5, 1e5, 5e4], {}, 'rounds are used up'],
  ['seven of eight', [8e6, 4e6, 2e6, 1e6, 5e5, 2e5, 1e5], {}, undefined],
  ['one of one', [65_536], { mostRounds: 1 }, 'rounds are used up'],
  ['50 ms and 100 for the transfer', [65_536, 10_000], { downtimeGoalMs: 150 }, 'that is short enough'],
  ['a little longer than the goal', [65_536, 10_001], { downtimeGoalMs: 150 }, undefined],
  ['the goal is met at once', [10_000], { downtimeGoalMs: 200 }, 'that is short enough'],
  ['a goal of nothing is never met', [65_536, 300], { downtimeGoalMs: 0 }, undefined],
  ['the reason that is the best one', [65_536, 10], { downtimeGoalMs: 1000, mostRounds: 1 }, 'little is left'],
]

for (const [what, pages, rule, why] of cases) {
  test(`${what}: ${why ?? 'another round'}`, () => {
    assert.is(stopReason(rounds(...pages), { ...plain, ...rule }), why)
  })
}

test('the rate is that of the largest round: small ones are all overhead', () => {
  const small: CompletedRound = { pages: 100, ms: 80, frozenMs: 20 }
  assert.is(predictedFreezeMs([...rounds(65_536), small]), 21)
  assert.is(predictedFreezeMs([small]), 100)
  assert.is(predictedFreezeMs([{ pages: 0, ms: 0, frozenMs: 7 }]), 7)
  assert.is(predictedFreezeMs([]), Number.POSITIVE_INFINITY)
})

test.run()
