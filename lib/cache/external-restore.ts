/** A criu restore on this host that the cache did not start, and the one that connects by `--stream`. */
import { closedGate, type Gate } from '../criu/action-script.ts'
import { runsScript } from '../criu/command-line.ts'
import { lostByStream, lostFault } from '../criu/image-files.ts'
import { type Served, serve } from '../criu/serve.ts'
import { reportSmallPipes } from '../criu/small-pipes.ts'
import { asFault } from '../format/refusal.ts'
import type { Fd } from '../kernel/fd.ts'
import { openProcess, type Process } from '../kernel/process.ts'
import { peerPid } from '../kernel/unix.ts'
import type { SealedSnapshot } from '../store/snapshots.ts'
import type { Piece } from '../store/stored-image.ts'
import type { CacheContext } from './context.ts'

/**
 * What the cache keeps for one such restore. A criu that runs our action script is held by a gate, and so may have its
 * snapshot before the verdict.
 */
export class ExternalRestore {
  /** Undefined where the criu cannot be seen from here. */
  readonly criu: Process | undefined
  readonly #context: CacheContext
  /** The snapshot that it gets, once it is chosen. */
  found: SealedSnapshot | undefined
  /** It cannot restore all of that snapshot. */
  loses = false
  /** To be called when the criu takes no more images. Resolves when it is known whether its tasks run. */
  finish = async (): Promise<void> => {}
  #gate: Gate | undefined
  #release = (): void => {}
  /** By performance.now(): when it got its snapshot. */
  #begun = performance.now()

  constructor(pid: number, context: CacheContext) {
    this.criu = openProcess(pid)
    this.#context = context
  }

  get canBeHeld(): boolean {
    return this.#gate !== undefined
  }

  /** Makes the gate, if the criu runs the action script `script`. Throws `IO`. */
  hold(script: string): void {
    const { directory } = this.#context.options
    if (this.criu === undefined || !runsScript(this.criu.pid, script)) return
    this.#gate = closedGate(directory, this.criu.pid, 'post-restore')
  }

  /**
   * Gives it the snapshot that `find` finds. `what` is reported as what it waits for, where there is nothing yet.
   * Throws what `find` throws, `EXISTS` where the snapshot runs or another restore is at work, and `CRIU` where this
   * criu would lose something of a snapshot whose source still has its tasks.
   */
  async choose(what: string, find: (early: boolean) => Promise<SealedSnapshot>): Promise<SealedSnapshot> {
    const { snapshots, handovers, options } = this.#context
    handovers.refuseIfRunning(options.id)
    if (!snapshots.has(options.id)) options.report({ event: 'waiting', what: options.id ?? what })
    const found = await find(this.canBeHeld)
    const lost = lostByStream(found.images)
    if (lost !== undefined) {
      const fault = lostFault(lost)
      if (handovers.refuse(found.id, fault)) throw fault
      this.loses = true
      options.report({ event: 'lost by stream', id: found.id, fault })
    }
    this.finish = handovers.admit(found.id, this.#gate, this.criu)
    this.found = found
    this.#release = found.use()
    this.#begun = performance.now()
    return found
  }

  /** Reports what the criu got, if it got a snapshot. */
  reportServed({ images, bytes }: Served): void {
    const { report } = this.#context.options
    const ms = performance.now() - this.#begun
    if (this.found !== undefined) report({ event: 'served', id: this.found.id, images: images.length, bytes, ms })
  }

  close(): void {
    this.#release()
    this.#gate?.remove()
    this.criu?.close()
  }
}

/**
 * Serves a `criu restore --stream` that has connected in the work directory. `script`: our action script. Reports what
 * fails.
 */
export async function serveExternalRestore(socket: Fd, script: string, context: CacheContext): Promise<void> {
  const { snapshots, handovers, options } = context
  const { id, timeoutMs, releaseEarly, report } = options
  const restore = new ExternalRestore(peerPid(socket), context)
  let early = false
  const choose = async (): Promise<SealedSnapshot['images']> => {
    if (restore.found !== undefined) return restore.found.images
    const found = await restore.choose('the newest snapshot', (canBeHeld) =>
      snapshots.find(id, timeoutMs, undefined, { early: canBeHeld }),
    )
    // A snapshot whose hand-over is over stays, for whoever asks next.
    const state = handovers.get(found.id)?.state
    early = releaseEarly && restore.canBeHeld && !restore.loses && (state === 'restoring' || state === 'reviving')
    return found.images
  }
  const onTaken = (piece: Piece): void => {
    if (early) restore.found?.release(piece)
  }
  try {
    restore.hold(script)
    const served = await serve(socket, choose, { onTaken }).finally(() => restore.finish())
    reportSmallPipes(report)
    restore.reportServed(served)
  } catch (error) {
    const what = restore.found === undefined ? 'a restore' : `the restore of ${restore.found.id}`
    report({ event: 'failed', what, fault: asFault(error) })
  } finally {
    restore.close()
  }
}
