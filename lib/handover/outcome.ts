/** The outcome of a hand-over, by what became of the tasks at the source (the verdict) and at the target (the fate). */
import { Fault } from '../fault.ts'
import type { Fate, Verdict } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Report } from '../progress.ts'
import type { DeliveredVerdict } from './deliver-verdict.ts'

export type Outcome =
  /** The process runs at the target. */
  | 'moved'
  /** The process is gone from the source, and its images wait at the target for a restore. */
  | 'stored'
  /** The process runs on at the source, because something failed. */
  | 'stayed'
  /** The process runs on at the source, as criu was asked to leave it. */
  | 'copied'
  /** The process runs neither at the source nor at the target. */
  | 'lost'
  /** The process runs on at the source, and a copy runs at the target, or may. */
  | 'twice'

const outcomes: Record<Verdict, Record<Fate, Outcome>> = {
  go: { running: 'moved', stored: 'stored', dropped: 'lost' },
  // Images that are stored after a drop were let run by hand: a restore gets them.
  drop: { running: 'twice', stored: 'twice', dropped: 'stayed' },
  copy: { running: 'twice', stored: 'copied', dropped: 'copied' },
}

/** Pure. */
export function outcomeOf(verdict: Verdict, fate: Fate): Outcome {
  return outcomes[verdict][fate]
}

/** `FAILED_DUMP`: criu has ended and has not killed the tasks, so nothing of its dump may be restored. */
export function tasksRunOnFault(): Fault {
  return new Fault('FAILED_DUMP', 'criu has ended, and the process that it dumped runs on: the dump failed', {
    hint:
      "see the dump's own log; --leave-running, if that was meant, must be on its command line " +
      'or in its configuration',
  })
}

/** Reports the outcome. Throws `MISSING` where no process is left, and `EXISTS` where there are two. */
export function reportOutcome(id: SnapshotId, { verdict, fate }: DeliveredVerdict, report: Report): void {
  const outcome = outcomeOf(verdict, fate)
  switch (outcome) {
    case 'moved':
    case 'stored':
    case 'copied':
      report({ event: 'handed over', id, verdict: outcome === 'copied' ? 'copy' : 'go', fate })
      break
    case 'stayed':
      report({ event: 'not handed over', id })
      break
    case 'lost':
      throw new Fault('MISSING', `the process of snapshot ${id} is gone from its source, and its copy was killed`, {
        hint: 'was --drop used? look for the process on both hosts before you start it anew',
      })
    case 'twice':
      throw new Fault('EXISTS', `the process of snapshot ${id} runs on at its source, and its copy runs, too`, {
        hint: 'was --let-run used? end one of the two',
      })
  }
}
