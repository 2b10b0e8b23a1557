/** A client of the cache gets a snapshot, when it is here. */
import { Fault } from '../fault.ts'
import type { ImageName, SnapshotId } from '../format/names.ts'
import type { Piece, StoredImage } from '../store/stored-image.ts'
import { accepting } from '../stream/frames.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import { sendSnapshot } from '../stream/send.ts'
import type { CacheContext, Conversation } from './context.ts'
import type { AdmittedRestore, RemoteRestore } from './handovers.ts'

/** Larger windows are sent as they are. */
const LARGEST_GATHERED = 2 ** 16
/** Smaller ones are put together: so much a client, that many clients at a time need little. */
const GATHERED_BYTES = 2 * LARGEST_GATHERED

/** What a client says when it has all. */
const confirmation = accepting('sealed')

export async function sendStored(
  { id, timeoutMs }: { id: SnapshotId | undefined; timeoutMs: number },
  { reader, writer, connection, memory, holds }: Conversation & { holds: boolean },
  { snapshots, handovers, options: { report, signal, timeoutMs: mostStillMs } }: CacheContext,
): Promise<void> {
  handovers.refuseIfRunning(id)
  const first = reader.next(confirmation)
  first.catch(() => {})
  const left = new AbortController()
  const leave = (): void => left.abort(new Fault('LINK', 'the client left before its snapshot was here'))
  first.then(leave, leave)
  const snapshot = await snapshots.find(id, timeoutMs, left.signal, { early: holds })
  const done = snapshot.use()
  let remote: RemoteRestore | undefined
  let lead: AdmittedRestore | undefined
  try {
    connection.enter('moving', mostStillMs)
    memory.add(GATHERED_BYTES)
    if (holds) remote = handovers.remote(snapshot.id, writer)
    else lead = handovers.admit(snapshot.id, undefined, undefined)
    const begun = performance.now()
    const until = remote === undefined ? undefined : 'running'
    const reserve = [...snapshot.images.values()].reduce((sum, { size }) => sum + size, 0)
    const sent = await sendSnapshot(writer, snapshot.id, storedSource(snapshot.images), { signal, until, reserve })
    const reply = await first
    if (reply?.digest !== sent.digest) {
      throw new Fault('LINK', 'the client did not confirm the snapshot')
    }
    memory.add(-GATHERED_BYTES)
    connection.enter(remote === undefined ? 'waiting' : 'holding')
    const ms = performance.now() - begun
    report({ event: 'served', id: snapshot.id, images: sent.images.length, bytes: sent.bytes, ms })
    await remote?.follow(reader)
  } catch (error) {
    remote?.lost(error as Fault)
    throw error
  } finally {
    done()
    await lead?.finish()
  }
}

/** Windows of a size that is good to send; what was put together is overwritten when the next one is asked for. */
function* gathered(pieces: Iterable<Piece>): Generator<Uint8Array> {
  let room: Buffer | undefined
  let filled = 0
  for (const { window } of pieces) {
    if (filled > 0 && filled + window.length > GATHERED_BYTES && room !== undefined) {
      yield room.subarray(0, filled)
      filled = 0
    }
    if (window.length > LARGEST_GATHERED) {
      if (filled > 0 && room !== undefined) yield room.subarray(0, filled)
      filled = 0
      yield window
      continue
    }
    room ??= Buffer.allocUnsafeSlow(GATHERED_BYTES)
    room.set(window, filled)
    filled += window.length
  }
  if (filled > 0 && room !== undefined) yield room.subarray(0, filled)
}

/** Stored images as a source, so that a snapshot can be sent on. */
function storedSource(images: ReadonlyMap<ImageName, StoredImage>): ImageSource {
  return {
    images: (async function* (): AsyncGenerator<OpenImage> {
      for (const { name, pieces } of images.values()) {
        yield { name, body: { kind: 'pieces', pieces: gathered(pieces) } }
      }
    })(),
    destroy() {},
  }
}
