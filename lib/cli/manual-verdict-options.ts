/** A verdict that a person gives, where the source cannot: for the commands that hold a restored process. */
import { snapshotId } from '../format/names.ts'
import type { ValuesOf } from './common-options.ts'
import { atMostOne } from './parse.ts'

export const manualVerdictOptions = { 'let-run': { type: 'string' }, drop: { type: 'string' } } as const

/** The part of a usage text about these options. */
export const manualVerdictHelp = `      --let-run ID     resume the copy of snapshot ID that is held in DIR. Only
                       if you know that its process is gone at the source: else there are two
      --drop ID        kill that copy: its process runs on at the source`

/** The verdict, if one is given. Throws `USAGE`. */
export function readManualVerdict({ drop, 'let-run': letRun }: ValuesOf<typeof manualVerdictOptions>) {
  atMostOne({ '--let-run': letRun, '--drop': drop })
  if (letRun !== undefined) return { id: snapshotId(letRun, 'USAGE'), verdict: 'go' as const }
  return drop === undefined ? undefined : { id: snapshotId(drop, 'USAGE'), verdict: 'drop' as const }
}
