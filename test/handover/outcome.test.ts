import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import type { Fault } from '../../lib/fault.ts'
import { fates, verdicts } from '../../lib/format/enums.ts'
import { snapshotId } from '../../lib/format/names.ts'
import { outcomeOf, reportOutcome } from '../../lib/handover/outcome.ts'
import type { Progress } from '../../lib/progress.ts'
import { throwsFault } from '../expect.ts'

const test = suite('handover/outcome')
const id = snapshotId('web-1')

/** Every pair of words that the wire can carry, what it means, and how it is told. */
const pairs = {
  'go running': ['moved', 'handed over'],
  'go stored': ['stored', 'handed over'],
  'go dropped': ['lost', 'MISSING'],
  'drop running': ['twice', 'EXISTS'],
  'drop stored': ['twice', 'EXISTS'],
  'drop dropped': ['stayed', 'not handed over'],
  'copy running': ['twice', 'EXISTS'],
  'copy stored': ['copied', 'handed over'],
  'copy dropped': ['copied', 'handed over'],
}

for (const verdict of verdicts) {
  for (const fate of fates) {
    const [ending, told] = pairs[`${verdict} ${fate}`] ?? []
    test(`${verdict} and ${fate}: ${ending}`, () => {
      assert.is(outcomeOf(verdict, fate), ending)
      const reports: Progress[] = []
      const act = (): void => reportOutcome(id, { verdict, fate }, (progress) => void reports.push(progress))
      if (told === 'MISSING' || told === 'EXISTS') throwsFault(told satisfies Fault['code'], act)
      else act()
      assert.equal(
        reports.map(({ event }) => event),
        told === 'MISSING' || told === 'EXISTS' ? [] : [told],
      )
    })
  }
}

test.run()
