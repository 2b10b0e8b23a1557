/**
 * The hand-overs of one cache, by snapshot. A snapshot is restored by a criu that the cache starts, by a criu that
 * somebody else started on this host, or by a client on another host.
 */

import { timingSafeEqual } from 'node:crypto'
import type { Gate } from '../criu/action-script.ts'
import { followRestore, RunningRestore } from '../criu/restore.ts'
import { checkCriuOptions } from '../criu/run.ts'
import { SERVE_SOCKET } from '../criu/serve.ts'
import { openWorkDir, type PrivateDirectory, type WorkDir } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import type { Fate, Until, Verdict } from '../format/enums.ts'
import { NO_TOKEN } from '../format/frame.ts'
import type { SnapshotId } from '../format/names.ts'
import { asFault } from '../format/refusal.ts'
import { manualCommand } from '../handover/manual-verdict.ts'
import { reportOutcome } from '../handover/outcome.ts'
import { type RecoveredRestore, recoverRestores, restoreDirectory, restoreLabel } from '../handover/recover.ts'
import { type ImagesOutcome, TargetHandover } from '../handover/target.ts'
import type { Process } from '../kernel/process.ts'
import type { Report } from '../progress.ts'
import type { Snapshots } from '../store/snapshots.ts'
import { accepting, type FrameReader, type FrameWriter } from '../stream/frames.ts'
import { defer } from '../stream/wait.ts'

/** A restore by a client on another host. */
export interface RemoteRestore {
  /** Exchanges `ready` and the verdict with the client, until its tasks run, or do not. */
  follow(reader: FrameReader): Promise<void>
  /** The client is gone. If it was ready it holds its tasks, and somebody must give it the verdict by hand. */
  lost(reason: Fault): void
}

export interface CacheRestoreOptions {
  /** The work directory. */
  directory: string
  /** Restore every snapshot of a hand-over as soon as it is sealed. */
  restore: { criu: string; options: readonly string[] } | undefined
  /**
   * Release the memory of a snapshot while a restore that can be held reads it: such a snapshot can be restored once.
   */
  releaseEarly: boolean
  /** Retain a snapshot when its process runs, for more restores. */
  keep: boolean
  report: Report
  signal: AbortSignal
}

function unknownHere(id: SnapshotId): Fault {
  return new Fault('MISSING', `no snapshot ${id} waits for a verdict here`)
}

/** Throws where the socket of a restore could not be created later, when a source relies on it. */
function checkRestoreDirectory(directory: string): void {
  const secret = restoreDirectory(directory)
  try {
    openWorkDir(secret.path, SERVE_SOCKET).remove()
  } finally {
    secret.remove()
  }
}

/** What a client on another host reports of its restore. */
const clientReports = accepting('ready', 'fate', 'refused')

/** Hand-overs that are remembered after their end, for a verdict that comes twice. */
const MOST_REMEMBERED = 1000

export class Handovers {
  readonly #snapshots: Snapshots
  readonly #options: CacheRestoreOptions
  /** Every hand-over that is open, and the last ones that are over; the oldest first. */
  readonly #handovers = new Map<SnapshotId, TargetHandover>()

  /**
   * Throws `USAGE` for criu options that a restore here cannot have, and `IO` where a restore could not get its socket.
   */
  constructor(snapshots: Snapshots, options: CacheRestoreOptions) {
    this.#snapshots = snapshots
    this.#options = options
    const { restore, directory } = options
    if (restore === undefined) return
    checkCriuOptions(restore.options)
    checkRestoreDirectory(directory)
  }

  get all(): TargetHandover[] {
    return [...this.#handovers.values()]
  }

  get(id: SnapshotId | undefined): TargetHandover | undefined {
    return id === undefined ? undefined : this.#handovers.get(id)
  }

  /**
   * Begins the hand-over of a snapshot whose images are all here. `token`: what a verdict on another link must show.
   * `until`: what the source waits for, if it still waits.
   */
  add(id: SnapshotId, token: Buffer = NO_TOKEN, until?: Until): TargetHandover {
    const snapshots = this.#snapshots
    const onSettled = (outcome: ImagesOutcome): void => {
      if (outcome === 'copied') snapshots.decide(id, true)
      else if (outcome === 'running' && (this.#options.keep || snapshots.pinned.has(id))) snapshots.decide(id, false)
      else snapshots.remove(id)
      this.#forgetOldest()
    }
    const handover = new TargetHandover(id, onSettled, token, until)
    this.#handovers.set(id, handover)
    return handover
  }

  /**
   * Takes over the restores that a killed cache left held in the work directory: their images are gone, their tasks
   * live.
   */
  recover(): void {
    const { directory, report } = this.#options
    for (const restore of recoverRestores(directory)) {
      this.#adopt(restore).catch((fault: Error) => report({ event: 'failed', what: restore.id, fault }))
    }
  }

  /** Throws `EXISTS` while a hand-over of that id is open, perhaps one without images. */
  refuseIfOpen(id: SnapshotId): void {
    const state = this.#handovers.get(id)?.state
    if (state === undefined || state === 'running' || state === 'dropped') return
    throw new Fault('EXISTS', `a snapshot ${id} is here already`, { hint: 'choose another --snapshot ID' })
  }

  /** Throws `EXISTS` for a snapshot that has become a process here, unless its images are retained. */
  refuseIfRunning(id: SnapshotId | undefined): void {
    if (id === undefined || this.#handovers.get(id)?.state !== 'running' || this.#snapshots.has(id)) return
    throw new Fault('EXISTS', `snapshot ${id} was handed over, and runs`, {
      hint: 'one snapshot becomes one process',
    })
  }

  /** Starts criu on the snapshot, if this cache restores by itself. Throws `MISSING`. */
  restore(id: SnapshotId): void {
    const { restore } = this.#options
    if (restore !== undefined) void this.#start(this.#expect(id), restore.criu, restore.options)
  }

  /**
   * Lets a criu that somebody else started restore the snapshot; `gate` holds it until the verdict. Without a gate it
   * cannot be seen whether its tasks run, so the images stay. Throws `EXISTS` where another restore is at work. The
   * returned function is to be called when CRIU has closed its socket; it resolves when it is known whether the tasks
   * run.
   */
  admit(id: SnapshotId, gate?: Gate, criu?: Process): () => Promise<void> {
    const handover = this.#withVerdict(id)
    if (handover === undefined) {
      gate?.held.then(() => gate.open()).catch(() => {})
      return async () => void (gate && (await criu?.ended))
    }
    gate?.label(restoreLabel(id, handover.token))
    handover.restore()
    if (gate === undefined) {
      handover.taken = true
      return async () => handover.restoreFailed(new Fault('CRIU', 'not held'))
    }
    const followed = followRestore(gate, criu ?? { pid: 0, ended: Promise.resolve() })
    const atGate = (): void => {
      followed.noteTasks()
      handover.restored(followed)
    }
    gate.held.then(atGate).catch(() => {})
    return async () => {
      if (!(await followed.runs))
        this.#restoreFailed(handover, new Fault('CRIU', `the criu that restored ${id} failed`))
    }
  }

  /**
   * Lets a client restore the snapshot on its own host; its reports and our verdict cross its link. Undefined for a
   * snapshot without a hand-over, or whose hand-over is over. Throws `EXISTS` where another restore is at work.
   */
  remote(id: SnapshotId, writer: FrameWriter): RemoteRestore | undefined {
    const handover = this.#withVerdict(id)
    if (handover === undefined) return undefined
    handover.restore()
    const runs = defer<boolean>()
    const send = (verdict: Verdict) => () =>
      void writer.send({ type: 'verdict', verdict, token: NO_TOKEN, id }).catch(runs.reject)
    return {
      async follow(reader) {
        for (;;) {
          const frame = await reader.expect(clientReports)
          if (frame.type === 'ready') handover.restored({ open: send('go'), shut: send('drop'), runs: runs.promise })
          else if (frame.type === 'fate') return runs.resolve(frame.fate === 'running')
          else throw new Fault(frame.code, `the client refused: ${frame.reason}`)
        }
      },
      lost(reason) {
        const isHeld = handover.state === 'holding' || handover.state === 'running'
        if (isHeld) runs.reject(new Fault('LINK', `the client that holds snapshot ${id} is out of reach`))
        else handover.restoreFailed(reason)
      },
    }
  }

  /**
   * Tells a source that waits for a restored copy that the criu that came cannot make one. Returns whether the source
   * still has its tasks, as far as is known here.
   */
  refuse(id: SnapshotId, reason: Fault): boolean {
    const handover = this.#withVerdict(id)
    if (handover?.state !== 'sealed') return false
    if (handover.until !== 'running') return true
    handover.restore()
    // A criu that waits for the snapshot has it before anybody listens for what becomes of it.
    setImmediate(() => handover.restoreFailed(reason))
    return true
  }

  /** Throws `MISSING` unless the token is that of the hand-over: the same fault as for an unknown snapshot. */
  checkToken(id: SnapshotId, token: Buffer): void {
    const own = this.#handovers.get(id)?.token ?? NO_TOKEN
    if (!own.equals(NO_TOKEN) && own.length === token.length && timingSafeEqual(own, token)) return
    throw unknownHere(id)
  }

  /** Carries out a verdict and reports the outcome. Throws `MISSING`, and what `TargetHandover.decide` throws. */
  async decide(id: SnapshotId, verdict: Verdict): Promise<Fate> {
    const { report } = this.#options
    const handover = this.#expect(id)
    const fate = await handover.decide(verdict)
    if (verdict === 'go' && fate === 'stored') this.#snapshots.decide(id, false)
    try {
      reportOutcome(id, { verdict, fate }, report)
    } catch (fault) {
      report({ event: 'failed', what: `the hand-over of ${id}`, fault: fault as Fault })
    }
    handover.watcher?.settled?.()
    return fate
  }

  /** Reports that a person may have to give the verdict. */
  reportUndecided(id: SnapshotId): void {
    const { directory, report } = this.#options
    report({ event: 'undecided', id, how: manualCommand('cache', directory, id) })
  }

  #expect(id: SnapshotId): TargetHandover {
    const handover = this.#handovers.get(id)
    if (handover === undefined) throw unknownHere(id)
    return handover
  }

  /**
   * The hand-over that a restore of the snapshot takes part in; undefined where its images are like those of any other
   * snapshot, and nothing depends on who restores them.
   */
  #withVerdict(id: SnapshotId): TargetHandover | undefined {
    const handover = this.#handovers.get(id)
    const isOver = handover?.state === 'dropped' || (handover?.state === 'running' && this.#snapshots.has(id))
    return isOver ? undefined : handover
  }

  #forgetOldest(): void {
    for (const [id, { state }] of this.#handovers) {
      if (this.#handovers.size <= MOST_REMEMBERED) return
      if (state !== 'running' && state !== 'dropped') continue
      this.#handovers.delete(id)
    }
  }

  /** A snapshot whose memory was released early cannot be offered a second time. */
  #restoreFailed(handover: TargetHandover, reason: Fault): void {
    if (this.#snapshots.isReleased(handover.id)) this.#snapshots.remove(handover.id)
    handover.restoreFailed(reason)
  }

  async #adopt({ id, token, held, finish }: RecoveredRestore): Promise<void> {
    const handover = this.add(id, token)
    handover.restore()
    handover.restored(held)
    this.reportUndecided(id)
    await finish()
  }

  async #start(handover: TargetHandover, criu: string, criuOptions: readonly string[]): Promise<void> {
    const { directory, releaseEarly, report, signal } = this.#options
    const { id } = handover
    const begun = performance.now()
    let secret: PrivateDirectory | undefined
    let work: WorkDir | undefined
    let release = (): void => {}
    // Somebody else restores it already.
    if (handover.state !== 'sealed' && handover.state !== 'owning') return
    handover.restore()
    // A copy that is held may be the only one: our signal leaves it to the next cache here, as a crash would.
    const stop = new AbortController()
    const stopped = (): void => {
      if (handover.state === 'restoring') stop.abort(signal.reason)
      else this.reportUndecided(id)
    }
    signal.addEventListener('abort', stopped)
    try {
      secret = restoreDirectory(directory)
      work = openWorkDir(secret.path, SERVE_SOCKET)
      const found = await this.#snapshots.find(id, 0, undefined, { early: true })
      release = found.use()
      const restore = new RunningRestore(criu, criuOptions, found.images, work, {
        hold: { label: restoreLabel(id, handover.token), gates: work.path },
        signal: stop.signal,
        pool: found.sink.pool,
        ...(releaseEarly && { onTaken: (piece) => found.release(piece) }),
      })
      void restore.held.then(() => handover.restored(restore))
      await restore.done
      report({ event: 'restored', ms: performance.now() - begun })
    } catch (error) {
      this.#restoreFailed(handover, asFault(error))
      if (this.#handovers.get(id)?.state !== 'dropped') {
        report({ event: 'failed', what: `the restore of ${id}`, fault: error as Error })
      }
    } finally {
      signal.removeEventListener('abort', stopped)
      release()
      work?.remove()
      secret?.remove()
    }
  }
}
