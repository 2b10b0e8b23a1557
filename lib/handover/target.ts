/**
 * The target's end of a hand-over: one snapshot whose verdict is to come, and the restore that holds its copy (see
 * state-machine.ts).
 */
import type { HeldRestore } from '../criu/restore.ts'
import { Fault } from '../fault.ts'
import type { Fate, Until, Verdict } from '../format/enums.ts'
import { NO_TOKEN } from '../format/frame.ts'
import type { SnapshotId } from '../format/names.ts'
import { type TargetEvent, type TargetState, targetAfter } from './state-machine.ts'

/** Tells the source, over its link. */
export interface SourceWatcher {
  ready(): void
  refused(reason: Fault): void
  /** The verdict came, perhaps over another link. */
  settled?(): void
}

/** What becomes of the images: the tasks run, or must not; or the images are an archive like any other. */
export type ImagesOutcome = 'running' | 'dropped' | 'copied'

/** A snapshot of a hand-over whose images are all here. */
export class TargetHandover {
  readonly id: SnapshotId
  /** What a verdict on another link must show; `NO_TOKEN` where no other link may give one. */
  readonly token: Buffer
  /** What the source waits for; undefined where that is not known any more. */
  readonly until: Until | undefined
  /** When all images were here, by performance.now(). */
  readonly since = performance.now()
  watcher: SourceWatcher | undefined
  /** A criu that could not be held has taken the images: whether its tasks run cannot be seen. */
  taken = false
  readonly #onSettled: (outcome: ImagesOutcome) => void
  #state: TargetState = 'sealed'
  /** The restore that holds the copy. */
  #held: HeldRestore | undefined
  /** The verdict was `copy`. */
  #copied = false

  /** `onSettled` is called when no restore works on the images any more. */
  constructor(
    id: SnapshotId,
    onSettled: (outcome: ImagesOutcome) => void,
    token: Buffer = NO_TOKEN,
    until: Until | undefined = undefined,
  ) {
    this.id = id
    this.token = token
    this.until = until
    this.#onSettled = onSettled
  }

  get state(): TargetState {
    return this.#state
  }

  /** A restore begins. Throws `EXISTS` when another one has, or when there is nothing to restore. */
  restore(): void {
    const before = this.#state
    if (this.#step('restore') !== before) return
    throw new Fault('EXISTS', `snapshot ${this.id} is ${before}`, { hint: 'one snapshot becomes one process' })
  }

  /** CRIU is at post-restore: the copy is held, let go, or dropped, as the verdict says. */
  restored(copy: HeldRestore): void {
    const before = this.#state
    const now = this.#step('restored')
    if (now === before && now !== 'dropped') {
      copy.shut()
      return
    }
    this.#held = copy
    if (now === 'running') this.#run(copy).catch((reason: Fault) => this.watcher?.refused(reason))
    else if (now === 'dropped') this.#drop(copy).catch(() => {})
    else this.watcher?.ready()
  }

  /** CRIU gave up. */
  restoreFailed(reason: Fault): void {
    this.#held = undefined
    const before = this.#state
    if (this.#step('restore failed') !== before) this.watcher?.refused(reason)
    else if (this.#state === 'dropped') this.#settleDropped()
  }

  /** Obeys the verdict. Throws `CRIU` where the tasks should run and do not: the images stay. */
  async decide(verdict: Verdict): Promise<Fate> {
    const before = this.#state
    const now = this.#step(verdict)
    if (now !== before) this.#copied = verdict === 'copy'
    if (before === 'holding' && this.#held !== undefined) {
      if (now === 'running') return this.#run(this.#held)
      if (now === 'dropped') return this.#drop(this.#held)
    }
    if (now === 'running') return 'running'
    if (now !== 'dropped') return 'stored'
    // A restore that works on the images ends first.
    if (before === 'sealed') this.#settleDropped()
    return before === 'sealed' && this.#copied ? 'stored' : 'dropped'
  }

  #step(event: TargetEvent): TargetState {
    this.#state = targetAfter(this.#state, event)
    return this.#state
  }

  async #run(copy: HeldRestore): Promise<Fate> {
    copy.open()
    const runs = await copy.runs.catch((reason: unknown) => {
      // The holder is out of reach and holds on: the verdict can be given again.
      this.#state = 'holding'
      throw reason
    })
    if (runs) {
      this.#onSettled('running')
      return 'running'
    }
    this.#step('restore failed')
    this.#held = undefined
    throw new Fault('CRIU', `the tasks of snapshot ${this.id} were restored and are gone: criu failed at its end`, {
      hint: 'the source is gone too: the cache keeps the images, restore them again',
    })
  }

  async #drop(copy: HeldRestore): Promise<Fate> {
    copy.shut()
    await copy.runs
    this.#settleDropped()
    return 'dropped'
  }

  #settleDropped(): void {
    this.#onSettled(this.#copied ? 'copied' : 'dropped')
  }
}
