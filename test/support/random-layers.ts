/** Chains of pagemaps that fast-check makes. */
import fc from 'fast-check'
import { pageFlag } from '../../lib/format/pagemap.ts'

const { parent, lazy, present } = pageFlag

/** What each page of a layer is, at most `space` of them: its flags, or none. The oldest layer has no parent. */
export function randomKinds(oldest: boolean, space: number): fc.Arbitrary<(number | undefined)[]> {
  const own = oldest ? [present, present] : [parent, parent, parent | lazy]
  const run = fc.tuple(fc.nat(6), fc.constantFrom(undefined, present, present | lazy, lazy, ...own))
  return fc
    .array(run, { minLength: 4, maxLength: 16 })
    .map((runs) => runs.flatMap(([length, kind]) => Array<number | undefined>(length).fill(kind)).slice(0, space))
}
