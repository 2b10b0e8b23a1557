/**
 * The target's end of a hand-over outside of a cache: restore-from-socket holds the tasks until its source says what became
 * of its own. If the link is lost meanwhile it holds on, and takes the verdict at a socket by its snapshot's name.
 */

import { setTimeout } from 'node:timers/promises'
import { commandName } from '../command-name.ts'
import type { RestoreHold, RunningRestore } from '../criu/restore.ts'
import { openWorkDir, removeIfEmpty } from '../criu/work-directory.ts'
import { HOLD_DIRECTORY } from '../defaults.ts'
import { Fault } from '../fault.ts'
import type { Until } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import { refusalOf } from '../format/refusal.ts'
import type { Frame } from '../format/wire.ts'
import { acceptUnix } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'
import { fdLink } from '../stream/fd-link.ts'
import {
  accepting,
  type FrameReader,
  type FrameWriter,
  frameReader,
  frameWriter,
  unexpected,
} from '../stream/frames.ts'
import type { Link } from '../stream/link.ts'
import { defer } from '../stream/wait.ts'
import { restoreDirectory, restoreLabel } from './recover.ts'
import { type ImagesOutcome, openTargetHandover } from './target.ts'

/** What a source offers: its snapshot is here, and a verdict will come. */
export interface HandoverOffer {
  id: SnapshotId
  until: Until
  reader: FrameReader
  writer: FrameWriter
  /** Says `sealed`, where that was put off. */
  seal: () => Promise<void>
}

/** The name of the socket at which the holder of a snapshot takes its verdict. */
export function holdSocket(id: SnapshotId): string {
  return `${id}.sock`
}

const verdicts = accepting('verdict')

/** A source that heard a refusal answers with its verdict; it may be gone. */
const ANSWER_MS = 5000

/**
 * Restores and holds; returns when the tasks run. Throws what CRIU refuses, and `ABORTED` where the source's tasks run on.
 * A signal stops a restore that is not held yet; a copy that is held is offered back, for it may be the only one, and stays at its gate
 * when we end (see adopt.ts).
 */
export async function holdRestored(
  offer: HandoverOffer,
  start: (hold: RestoreHold, signal: AbortSignal) => RunningRestore,
  { directory, report, signal }: { directory: string | undefined; report: Report; signal: AbortSignal },
): Promise<void> {
  const { id, until, reader, writer } = offer
  const outcome = defer<ImagesOutcome>()
  const arrival = openTargetHandover(id, outcome.resolve)
  const place = directory ?? HOLD_DIRECTORY
  const control = openWorkDir(place, holdSocket(id))
  const secret = restoreDirectory(control.path)
  const stop = new AbortController()
  const say = (frame: Frame): void => void writer.send(frame).catch(() => {})
  const refuse = (fault: Fault): void => say({ type: 'refused', code: refusalOf(fault), reason: fault.message })
  arrival.watcher = {
    ready: () => void (until === 'sealed' ? offer.seal().catch(() => {}) : say({ type: 'ready' })),
    refused: refuse,
    settled() {},
  }
  const obey = async (from: FrameReader, to: FrameWriter): Promise<void> => {
    const frame = await from.next(verdicts)
    if (frame === undefined) throw new Fault('LINK', 'the source closed the link')
    if (frame.id !== id) throw unexpected(frame)
    await to.send({ type: 'fate', fate: await arrival.decide(frame.verdict) })
  }
  /** A copy that was let go, or is about to be, is left alone: it may be the only one. */
  const abandon = (reason: unknown): void => {
    if (arrival.state !== 'running' && arrival.state !== 'reviving') stop.abort(reason)
  }
  const undecided = (): void => report({ event: 'undecided', id, how: byHand(directory, id) })
  const interrupted = (): void => {
    if (arrival.state === 'holding') {
      refuse(signal.reason as Fault)
      undecided()
    } else abandon(signal.reason)
  }
  signal.addEventListener('abort', interrupted)
  void listenAt(control.listener, obey)
  arrival.restore()
  const linked = obey(reader, writer).catch((reason: unknown) => {
    if (arrival.state === 'holding') undecided()
    // It was never told that we are ready, and so cannot have let go.
    else abandon(reason)
  })
  try {
    const restoring = start({ label: restoreLabel(id), gates: secret.path }, stop.signal)
    void restoring.held.then(() => arrival.restored(restoring))
    await Promise.race([restoring.done, outcome.promise])
    const became = await outcome.promise
    await linked
    if (became !== 'running') throw notHere()
    await restoring.done
  } catch (error) {
    const fault = error instanceof Fault ? error : new Fault('CRIU', String(error))
    arrival.restoreFailed(fault)
    await Promise.race([linked, setTimeout(ANSWER_MS, undefined, { ref: false })])
    throw arrival.state === 'dropped' ? notHere() : error
  } finally {
    signal.removeEventListener('abort', interrupted)
    secret.remove()
    control.remove()
    if (directory === undefined) removeIfEmpty(place)
  }
}

function notHere(): Fault {
  return new Fault('ABORTED', 'the source keeps the process: nothing of it runs here')
}

function byHand(directory: string | undefined, id: SnapshotId): string {
  const dir = directory === undefined ? '' : ` -D ${directory}`
  return `${commandName('restore-from-socket')}${dir} --let-run ${id}, or --drop ${id}`
}

/** Takes verdicts from this host, one after the other. */
async function listenAt(
  listener: Parameters<typeof acceptUnix>[0],
  obey: (from: FrameReader, to: FrameWriter) => Promise<void>,
): Promise<void> {
  for (;;) {
    let link: Link
    try {
      link = fdLink(await acceptUnix(listener), 'a local client', 'socket')
    } catch {
      return
    }
    const writer = frameWriter(link.outlet)
    const talk = async (): Promise<void> => {
      await writer.send({ type: 'hello' })
      await obey(frameReader(link.inlet), writer)
    }
    await Promise.race([talk(), setTimeout(ANSWER_MS, undefined, { ref: false })]).catch(() => {})
    link.destroy()
  }
}
