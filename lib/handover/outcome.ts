/** What a hand-over came to: by what became of the tasks here (the verdict) and there (the fate). */
import { Fault } from '../fault.ts'
import type { Fate, Verdict } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Report } from '../progress.ts'
import type { DeliveredVerdict } from './deliver-verdict.ts'

export type Outcome =
  /** The process runs there. */
  | 'moved'
  /** It is gone here, and its images wait there for a restore. */
  | 'stored'
  /** It runs on here, because something failed. */
  | 'stayed'
  /** It runs on here, for criu was asked to leave it. */
  | 'copied'
  /** It runs neither here nor there. */
  | 'lost'
  /** It runs on here, and there is a copy that runs or may. */
  | 'twice'

const endings: Record<Verdict, Record<Fate, Outcome>> = {
  go: { running: 'moved', stored: 'stored', dropped: 'lost' },
  // Images that are kept after a drop were let go by hand: a restore gets them.
  drop: { running: 'twice', stored: 'twice', dropped: 'stayed' },
  copy: { running: 'twice', stored: 'copied', dropped: 'copied' },
}

/** Pure. */
export function outcomeOf(verdict: Verdict, fate: Fate): Outcome {
  return endings[verdict][fate]
}

/** Why nothing of a dump may be restored whose criu has ended and has not killed: `FAILED_DUMP`. */
export function tasksRunOnFault(): Fault {
  return new Fault('FAILED_DUMP', 'criu has ended, and the process that it dumped runs on: the dump failed', {
    hint: "see the dump's own log; --leave-running, if that was meant, must be on its command line or in its configuration",
  })
}

/** Reports an ending that is in order. Throws `MISSING` where no process is left, and `EXISTS` where there are two. */
export function reportOutcome(id: SnapshotId, { verdict, fate }: DeliveredVerdict, report: Report): void {
  switch (outcomeOf(verdict, fate)) {
    case 'moved':
    case 'stored':
      report({ event: 'handed over', id, verdict: 'go', fate })
      break
    case 'copied':
      report({ event: 'handed over', id, verdict: 'copy', fate })
      break
    case 'stayed':
      report({ event: 'not handed over', id })
      break
    case 'lost':
      throw new Fault('MISSING', `the process of snapshot ${id} is gone from its source, and its copy was dropped`, {
        hint: 'was it dropped by hand? look for the process on both hosts before you start it anew',
      })
    case 'twice':
      throw new Fault('EXISTS', `the process of snapshot ${id} runs on at its source, and its copy was let run`, {
        hint: 'was it let run by hand? end one of the two',
      })
  }
}
