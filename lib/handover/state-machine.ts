/**
 * The state machines of a hand-over, as two tables: they decide which of the two ends may let its tasks run.
 *
 * The source's tasks are frozen, the target's are restored and held. One of the two must go on and the other must not,
 * whatever message is lost and whichever process is killed. So the source decides, by what happened to its tasks, and
 * must deliver that verdict; a target that has said `ready` holds its tasks until it learns the verdict.
 * docs/protocol/handover.md draws both machines; test/handover/state-machine.test.ts walks through every order of
 * events and every loss.
 */
import type { Verdict } from '../format/enums.ts'

export type SourceState =
  /** The tasks are frozen. CRIU is held at post-dump, or still writes. */
  | 'offering'
  /** CRIU may kill the tasks. If it fails to, they run on. */
  | 'letting go'
  /** The tasks are gone: the target's copy is the process. */
  | 'gone'
  /** The tasks run on because something failed. */
  | 'resumed'
  /** All images are out and the tasks run on, as CRIU was asked: `--leave-running` or `--leave-stopped`. */
  | 'copied'

export type SourceEvent =
  /** The target has what `until` asks for. */
  | 'agreed'
  /** The offer has ended: refused, late, cut or signalled. */
  | 'failed'
  /** All tasks were seen to be dead. */
  | 'dead'
  /** CRIU has ended and the tasks live, as it was asked. */
  | 'left'
  /**
   * CRIU has ended and the tasks live, though it was to kill them: it failed, or was killed, perhaps in its last
   * moment.
   */
  | 'ran on'

export type TargetState =
  /** The images are being received. */
  | 'receiving'
  /** All images are here and verified; the verdict is not known. */
  | 'sealed'
  /** CRIU restores, and will be held at post-restore. */
  | 'restoring'
  /** The tasks are restored and do not run. Only a verdict leads out. */
  | 'holding'
  /** The source is gone, and nobody restores: the images are the process. */
  | 'owning'
  /** The source is gone, and CRIU restores. */
  | 'reviving'
  | 'running'
  /** No task of this snapshot is here, and none will be. */
  | 'dropped'

export type TargetEvent =
  | 'all here'
  | 'restore'
  /** CRIU is at post-restore. */
  | 'restored'
  /** CRIU gave up, and removed what it had restored. */
  | 'restore failed'
  /** The link was lost, or the source gave up, before all images were here. */
  | 'cut'
  | Verdict

type Table<State extends string, Event extends string> = Record<State, Partial<Record<Event, State>>>

const source: Table<SourceState, SourceEvent> = {
  offering: { agreed: 'letting go', failed: 'resumed', dead: 'gone', left: 'copied', 'ran on': 'resumed' },
  'letting go': { dead: 'gone', left: 'copied', 'ran on': 'resumed' },
  gone: {},
  resumed: {},
  copied: {},
}

const target: Table<TargetState, TargetEvent> = {
  receiving: { 'all here': 'sealed', cut: 'dropped', drop: 'dropped' },
  sealed: { restore: 'restoring', go: 'owning', drop: 'dropped', copy: 'dropped' },
  restoring: { restored: 'holding', 'restore failed': 'sealed', go: 'reviving', drop: 'dropped', copy: 'dropped' },
  holding: { 'restore failed': 'sealed', go: 'running', drop: 'dropped', copy: 'dropped' },
  owning: { restore: 'reviving' },
  reviving: { restored: 'running', 'restore failed': 'owning' },
  // A criu that is killed in its last moment, after the verdict.
  running: { 'restore failed': 'owning' },
  dropped: {},
}

const verdicts: Record<SourceState, Verdict | undefined> = {
  offering: undefined,
  'letting go': undefined,
  gone: 'go',
  resumed: 'drop',
  copied: 'copy',
}

/** The source's next state; the same one where the event changes nothing. Pure. */
export function sourceAfter(state: SourceState, event: SourceEvent): SourceState {
  return source[state][event] ?? state
}

/** The target's next state; the same one where the event changes nothing. Pure. */
export function targetAfter(state: TargetState, event: TargetEvent): TargetState {
  return target[state][event] ?? state
}

/** The verdict of a source in this state; undefined while it is open. Pure. */
export function verdictOf(state: SourceState): Verdict | undefined {
  return verdicts[state]
}
