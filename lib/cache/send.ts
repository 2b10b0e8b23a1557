/** Sends a snapshot to a client, as soon as it is here. */
import { Fault } from '../fault.ts'
import type { ImageName, SnapshotId } from '../format/names.ts'
import type { Piece, StoredImage } from '../store/stored-image.ts'
import { accepting } from '../stream/frames.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import { sendSnapshot } from '../stream/send.ts'
import type { CacheContext, Peer } from './context.ts'
import type { RemoteRestore } from './handovers.ts'

/** Larger windows are sent without a copy. */
const LARGEST_GATHERED = 2 ** 16
/** Smaller windows are gathered in a buffer of this size: small, for there may be many clients at a time. */
const GATHERED_BYTES = 2 * LARGEST_GATHERED

/** The client confirms that it has everything. */
const confirmation = accepting('sealed')

/**
 * Sends the snapshot `id`, or the newest; waits for it at most `timeoutMs`. `canHold`: the client takes part in the
 * hand-over, and may have the snapshot before its verdict. Throws what `Snapshots.find` throws, `EXISTS`, and `LINK`.
 */
export async function sendStored(
  { id, timeoutMs }: { id: SnapshotId | undefined; timeoutMs: number },
  canHold: boolean,
  { reader, writer, connection, memory }: Peer,
  { snapshots, handovers, options: { report, signal, timeoutMs: limitMs } }: CacheContext,
): Promise<void> {
  handovers.refuseIfRunning(id)
  const first = reader.next(confirmation)
  const left = new AbortController()
  const leave = (): void => left.abort(new Fault('LINK', 'the client left before its snapshot was here'))
  first.then(leave, leave)
  const snapshot = await snapshots.find(id, timeoutMs, left.signal, { early: canHold })
  const release = snapshot.use()
  let remote: RemoteRestore | undefined
  let finish: (() => Promise<void>) | undefined
  try {
    connection.enter('moving', limitMs)
    memory.add(GATHERED_BYTES)
    if (canHold) remote = handovers.remote(snapshot.id, writer)
    else finish = handovers.admit(snapshot.id)
    const begun = performance.now()
    const until = remote === undefined ? undefined : 'running'
    const reserve = [...snapshot.images.values()].reduce((sum, { size }) => sum + size, 0)
    const sent = await sendSnapshot(writer, snapshot.id, storedSource(snapshot.images), { signal, until, reserve })
    const reply = await first
    if (reply?.digest !== sent.digest) throw new Fault('LINK', 'the client did not confirm the snapshot')
    memory.add(-GATHERED_BYTES)
    connection.enter(remote === undefined ? 'waiting' : 'holding')
    const ms = performance.now() - begun
    report({ event: 'served', id: snapshot.id, images: sent.images.length, bytes: sent.bytes, ms })
    await remote?.follow(reader)
  } catch (error) {
    remote?.lost(error as Fault)
    throw error
  } finally {
    release()
    await finish?.()
  }
}

/** Windows of a size that is good to send. A gathered window is overwritten when the next one is asked for. */
function* gathered(pieces: Iterable<Piece>): Generator<Uint8Array> {
  let buffer: Buffer | undefined
  let filled = 0
  for (const { window } of pieces) {
    const isLarge = window.length > LARGEST_GATHERED
    if (buffer !== undefined && filled > 0 && (isLarge || filled + window.length > GATHERED_BYTES)) {
      yield buffer.subarray(0, filled)
      filled = 0
    }
    if (isLarge) {
      yield window
      continue
    }
    buffer ??= Buffer.allocUnsafeSlow(GATHERED_BYTES)
    buffer.set(window, filled)
    filled += window.length
  }
  if (buffer !== undefined && filled > 0) yield buffer.subarray(0, filled)
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
