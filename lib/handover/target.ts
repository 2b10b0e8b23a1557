/**
 * The target's end of a hand-over: one snapshot with a verdict to come, and the restore that holds its copy (see handover.ts).
 */
import type { HeldRestore } from '../criu/restore.ts'
import { Fault } from '../fault.ts'
import type { Fate, Verdict } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import { type TargetState, targetAfter } from './state-machine.ts'

/** Who wants to know: the link to the source. */
export interface SourceWatcher {
  ready(): void
  refused(reason: Fault): void
  /** The verdict came, perhaps by another link. */
  settled(): void
}

export interface TargetHandover {
  readonly id: SnapshotId
  readonly state: TargetState
  /** By performance.now(). */
  readonly since: number
  watcher: SourceWatcher | undefined
  /** A criu that could not be held has taken the images: whether it runs cannot be seen. */
  taken: boolean
  /** A restore begins. Throws `EXISTS` when another one has, or when there is nothing to be restored. */
  restore(): void
  /** CRIU is at post-restore: it is held, let go, or dropped, as the verdict says. */
  restored(held: HeldRestore): void
  /** CRIU gave up. */
  restoreFailed(reason: Fault): void
  /** Obeys the verdict. Throws `CRIU` where the tasks should run and do not: the images stay. */
  decide(verdict: Verdict): Promise<Fate>
}

/** What becomes of the images: the tasks run, or must not; or they are an archive like any other. */
export type ImagesOutcome = 'running' | 'dropped' | 'copied'

/** An arrival whose images are all here. `onSettled` is told when no restore works on them any more. */
export function openTargetHandover(id: SnapshotId, onSettled: (outcome: ImagesOutcome) => void): TargetHandover {
  let state: TargetState = 'sealed'
  let held: HeldRestore | undefined
  let copied = false

  const dropped = (): void => onSettled(copied ? 'copied' : 'dropped')

  function step(event: Parameters<typeof targetAfter>[1]): TargetState {
    state = targetAfter(state, event)
    return state
  }

  /** Lets the copy run. */
  async function run(copy: HeldRestore): Promise<Fate> {
    copy.open()
    const runs = await copy.runs.catch((reason: unknown) => {
      // Out of reach: it holds, and the verdict can be given again.
      state = 'holding'
      throw reason
    })
    if (runs) {
      onSettled('running')
      return 'running'
    }
    step('restore failed')
    held = undefined
    throw new Fault('CRIU', `the tasks of snapshot ${id} were restored and are gone: criu failed at its end`, {
      hint: 'the source is gone too: the cache keeps the images, restore them again',
    })
  }

  async function drop(copy: HeldRestore): Promise<Fate> {
    copy.shut()
    await copy.runs
    dropped()
    return 'dropped'
  }

  return {
    id,
    since: performance.now(),
    watcher: undefined,
    taken: false,
    get state() {
      return state
    },
    restore() {
      const before = state
      if (step('restore') === before) {
        throw new Fault('EXISTS', `snapshot ${id} is ${before}`, { hint: 'one snapshot becomes one process' })
      }
    },
    restored(copy) {
      const before = state
      const now = step('restored')
      if (now === before && now !== 'dropped') return copy.shut()
      held = copy
      if (now === 'running') run(copy).catch((reason: Fault) => this.watcher?.refused(reason))
      else if (now === 'dropped') drop(copy).catch(() => {})
      else this.watcher?.ready()
    },
    restoreFailed(reason) {
      held = undefined
      const before = state
      if (step('restore failed') !== before) this.watcher?.refused(reason)
      else if (state === 'dropped') dropped()
    },
    async decide(verdict) {
      const before = state
      const now = step(verdict)
      if (now !== before) copied = verdict === 'copy'
      if (before === 'holding' && held !== undefined) {
        if (now === 'running') return run(held)
        if (now === 'dropped') return drop(held)
      }
      if (now === 'running') return 'running'
      if (now !== 'dropped') return 'stored'
      // A restore that works on the images ends first.
      if (before === 'sealed') dropped()
      return before === 'sealed' && copied ? 'stored' : 'dropped'
    },
  }
}
