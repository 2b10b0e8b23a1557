/**
 * The target's end of a hand-over outside of a cache: restore-from-socket holds the tasks until the source says what
 * became of its own. If the link is lost meanwhile the tasks stay held, and the verdict is taken at a socket that is
 * named after the snapshot.
 */

import { setTimeout } from 'node:timers/promises'
import type { RestoreHold, RunningRestore } from '../criu/restore.ts'
import { openWorkDir, type PrivateDirectory, removeIfEmpty, type WorkDir } from '../criu/work-directory.ts'
import { HOLD_DIRECTORY } from '../defaults.ts'
import { Fault } from '../fault.ts'
import type { Until } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import { refusalOf } from '../format/refusal.ts'
import { acceptUnix } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'
import { fdLink } from '../stream/fd-link.ts'
import { accepting, type FrameReader, type FrameWriter, unexpected } from '../stream/frames.ts'
import type { Link } from '../stream/link.ts'
import { defer } from '../stream/wait.ts'
import { overLink } from './deliver-verdict.ts'
import { holdSocket, manualCommand } from './manual-verdict.ts'
import { restoreDirectory, restoreLabel } from './recover.ts'
import { type ImagesOutcome, TargetHandover } from './target.ts'

/** The offer of a source: its snapshot is here, and a verdict will come. */
export interface HandoverOffer {
  id: SnapshotId
  until: Until
  reader: FrameReader
  writer: FrameWriter
  /** Tells the source that the tasks are held: by `ready`, or by `sealed`, which was put off then. */
  agree: () => Promise<void>
}

const verdicts = accepting('verdict')

/** How long a source that heard a refusal may take to answer with its verdict; it may be gone. */
const ANSWER_MS = 5000

export interface HoldOptions {
  /** The work directory; `HOLD_DIRECTORY` if undefined. */
  directory: string | undefined
  report: Report
  signal: AbortSignal
}

/**
 * One restore that is held for its source. `run` restores and holds, and returns when the tasks run. Throws criu's
 * error, and `ABORTED` where the source's tasks run on. A signal stops a restore that is not held yet. A copy that is
 * held is offered back to the source, and stays at its gate when this process ends, for it may be the only one (see
 * recover.ts).
 */
export class RestoreHolder {
  readonly #offer: HandoverOffer
  readonly #options: HoldOptions
  readonly #handover: TargetHandover
  readonly #outcome = defer<ImagesOutcome>()
  /** Has the socket for a verdict from this host. */
  readonly #control: WorkDir
  /** The directory of the gate. */
  readonly #secret: PrivateDirectory
  /** Stops the restore. */
  readonly #stop = new AbortController()

  constructor(offer: HandoverOffer, options: HoldOptions) {
    this.#offer = offer
    this.#options = options
    this.#handover = new TargetHandover(offer.id, this.#outcome.resolve)
    this.#handover.watcher = {
      ready: () => void offer.agree().catch(() => {}),
      refused: (fault) => this.#refuse(fault),
    }
    this.#control = openWorkDir(options.directory ?? HOLD_DIRECTORY, holdSocket(offer.id))
    this.#secret = restoreDirectory(this.#control.path)
  }

  async run(start: (hold: RestoreHold, signal: AbortSignal) => RunningRestore): Promise<void> {
    const handover = this.#handover
    const { signal } = this.#options
    signal.addEventListener('abort', this.#onSignal, { once: true })
    void this.#listen()
    handover.restore()
    const obeyed = this.#obey(this.#offer.reader, this.#offer.writer).catch((reason: unknown) => {
      if (handover.state === 'holding') this.#reportUndecided()
      // The source was never told that we are ready, and so cannot have let go.
      else this.#abandon(reason)
    })
    try {
      const hold = { label: restoreLabel(this.#offer.id), gates: this.#secret.path }
      const restore = start(hold, this.#stop.signal)
      void restore.held.then(() => handover.restored(restore))
      await Promise.race([restore.done, this.#outcome.promise])
      const outcome = await this.#outcome.promise
      await obeyed
      if (outcome !== 'running') throw notHereFault()
      await restore.done
    } catch (error) {
      handover.restoreFailed(error instanceof Fault ? error : new Fault('CRIU', String(error)))
      await Promise.race([obeyed, setTimeout(ANSWER_MS, undefined, { ref: false })])
      throw handover.state === 'dropped' ? notHereFault() : error
    } finally {
      signal.removeEventListener('abort', this.#onSignal)
      this.#secret.remove()
      this.#control.remove()
      if (this.#options.directory === undefined) removeIfEmpty(HOLD_DIRECTORY)
    }
  }

  /** Takes verdicts from this host, one after the other, until the listener is closed. */
  async #listen(): Promise<void> {
    for (;;) {
      let link: Link
      try {
        link = fdLink(await acceptUnix(this.#control.listener), 'a local client', 'socket')
      } catch {
        return
      }
      const answered = overLink(link, undefined, async (reader, writer) => {
        await writer.send({ type: 'hello' })
        await this.#obey(reader, writer)
      })
      await Promise.race([answered, setTimeout(ANSWER_MS, undefined, { ref: false })]).catch(() => {})
      link.destroy()
    }
  }

  readonly #onSignal = (): void => {
    const { reason } = this.#options.signal
    if (this.#handover.state === 'holding') {
      this.#refuse(reason as Fault)
      this.#reportUndecided()
    } else this.#abandon(reason)
  }

  /** Takes one verdict, and answers with the fate. */
  async #obey(reader: FrameReader, writer: FrameWriter): Promise<void> {
    const frame = await reader.next(verdicts)
    if (frame === undefined) throw new Fault('LINK', 'the source closed the link')
    if (frame.id !== this.#offer.id) throw unexpected(frame)
    await writer.send({ type: 'fate', fate: await this.#handover.decide(frame.verdict) })
  }

  /** A copy that was let go, or is about to be, is left alone: it may be the only one. */
  #abandon(reason: unknown): void {
    const { state } = this.#handover
    if (state !== 'running' && state !== 'reviving') this.#stop.abort(reason)
  }

  #refuse(fault: Fault): void {
    const { writer } = this.#offer
    writer.send({ type: 'refused', code: refusalOf(fault), reason: fault.message }).catch(() => {})
  }

  #reportUndecided(): void {
    const { id } = this.#offer
    const { directory, report } = this.#options
    report({ event: 'undecided', id, how: manualCommand('restore-from-socket', directory, id) })
  }
}

function notHereFault(): Fault {
  return new Fault('ABORTED', 'the source keeps the process: nothing of it runs here')
}
