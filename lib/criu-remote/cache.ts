/**
 * The image-cache's end of the wire of `criu --remote`: takes what an image-proxy of that time sends as a snapshot
 * (`--wire criu-remote`).
 *
 * One connection carries as many pre-dumps as there were and a dump, told apart by the `-D` of their criu. A dump that
 * is followed by another one is a round of a chain (lib/store/pending-chains.ts), and the last one becomes the
 * snapshot. Nothing is ever sent back.
 *
 * Nothing in this protocol tells that a dump is complete. What can be checked is checked: the stream ends where an
 * entry could begin, the last dump has its inventory.img and is no pre-dump, and every page that its pagemaps name is
 * there. A proxy that is killed between two images looks the same as one that is done, and a changed byte of memory
 * goes unnoticed.
 */
import { randomBytes } from 'node:crypto'
import { setImmediate as yieldToOthers } from 'node:timers/promises'
import type { CacheContext, ConnectionPolicy } from '../cache/context.ts'
import { reportSealed } from '../cache/receive.ts'
import { Fault } from '../fault.ts'
import { NO_DIGEST } from '../format/digest.ts'
import { TOKEN_BYTES } from '../format/frame.ts'
import { type ImageName, INVENTORY, type SnapshotId } from '../format/names.ts'
import { PAGE_BYTES, pagesPattern } from '../format/pagemap.ts'
import { asFault } from '../format/refusal.ts'
import { freshId } from '../store/fresh-id.ts'
import type { IncomingSnapshot } from '../store/snapshots.ts'
import { type MemoryWriter, writeInto } from '../store/stored-image.ts'
import type { Inlet } from '../stream/link.ts'
import type { TargetLink } from '../stream/resuming-receiver.ts'
import { summarize } from '../stream/summary.ts'
import { RemoteWireDecoder, type RemoteWireEvent } from './cache-wire.ts'
import { IDS } from './local-wire.ts'
import { encodeIds } from './messages.ts'

/** Bytes that are read at once: the only memory of a connection beside that for images. */
const READ_BYTES = 64 * 2 ** 10
/**
 * A connection is silent between two rounds, and nothing tells that one is over: so it may be for this many time-outs.
 */
const MOST_TIMEOUTS = 10
/** Bytes that are taken before other connections get a turn. */
const MOST_AT_ONCE = 8 * 2 ** 20

/** Takes what an image-proxy of `criu --remote` sends, to its end. Reports what fails, and closes the link. */
export async function handleRemoteConnection(
  { link }: TargetLink,
  context: CacheContext,
  { connection, origin }: ConnectionPolicy,
): Promise<void> {
  const id = freshId()
  const receiver = new RemoteReceiver(id, context)
  connection.onClose(() => receiver.drop())
  try {
    const limitMs = MOST_TIMEOUTS * context.options.timeoutMs
    await receiveAll(link.inlet, receiver, () => connection.enter('moving', limitMs))
  } catch (error) {
    context.failures.tell(origin, `${link.peer}, snapshot ${id}`, asFault(error))
    // What came was to become a snapshot, even if no image came: a restore need not wait for it.
    context.snapshots.lose(id)
  } finally {
    receiver.drop()
    link.destroy()
  }
}

/** `begin` is called with the first bytes. */
async function receiveAll(inlet: Inlet, receiver: RemoteReceiver, begin: () => void): Promise<void> {
  const decoder = new RemoteWireDecoder()
  const buffer = Buffer.allocUnsafeSlow(READ_BYTES)
  let hasBegun = false
  for (let since = 0; ; ) {
    const got = await inlet.read(buffer)
    if (got === 0) break
    if (!hasBegun) begin()
    hasBegun = true
    for (const event of decoder.push(buffer.subarray(0, got))) await receiver.take(event)
    since += got
    if (since < MOST_AT_ONCE) continue
    since = 0
    await yieldToOthers()
  }
  decoder.end()
  // A connection without bytes only looked whether the port is open.
  if (hasBegun) await receiver.end()
}

/** An image that is being received: the whole, or what is appended to it. */
interface Receiving {
  name: ImageName
  bytes: number
  writer: MemoryWriter
  append: boolean
}

/** Stores what one connection brings. */
class RemoteReceiver {
  readonly #id: SnapshotId
  readonly #context: CacheContext
  /** The `-D` of every dump that was announced. */
  readonly #pushed: string[] = []
  /** The dump that is being received. */
  #incoming: IncomingSnapshot | undefined
  /** Its part in the chain. That it is the last one is known only at the end of the stream. */
  #layer = { under: 0, last: false, token: randomBytes(TOKEN_BYTES) }
  #image: Receiving | undefined
  /** By performance.now(): when it began. */
  #begun = performance.now()
  #isSealed = false

  constructor(id: SnapshotId, context: CacheContext) {
    this.#id = id
    this.#context = context
  }

  /** Takes what the decoder found. Throws `FORMAT`, `MEMORY`, and what makes a round useless. */
  take(event: RemoteWireEvent): void | Promise<void> {
    switch (event.kind) {
      case 'push':
        this.#pushed.push(event.snapshot)
        return
      case 'snapshot':
        return this.#beginDump()
      case 'image':
        refuseInPage(event, this.#sink.images.get(event.name)?.size)
        this.#image = { ...event, writer: this.#sink.open(event.name) }
        return
      case 'bytes':
        return writeInto((this.#image as Receiving).writer, event.bytes)
      case 'imageEnd':
        return this.#endImage(this.#image as Receiving)
    }
  }

  /**
   * The stream has ended in order: seals the last dump. Throws `FAILED_DUMP` where that is not complete as far as can
   * be seen.
   */
  async end(): Promise<void> {
    if (this.#incoming === undefined || !this.#sink.images.has(INVENTORY)) {
      throw new Fault('FAILED_DUMP', `the stream ended without ${INVENTORY}: the dump did not finish`, {
        hint: "see the dump's own log, and the image-proxy's",
      })
    }
    const ids = encodeIds(this.#pushed)
    const writer = this.#sink.open(IDS)
    writeInto(writer, ids)
    this.#endImage({ name: IDS, bytes: ids.length, writer, append: false })
    this.#layer.last = true
    await this.#seal(this.#incoming)
    this.#isSealed = true
  }

  /** Forgets what came, unless it was sealed as a snapshot. */
  drop(): void {
    if (this.#isSealed) return
    this.#incoming?.drop()
    this.#context.snapshots.removeChain(this.#id)
  }

  /** Images come only after their dump was announced. */
  get #sink(): IncomingSnapshot['sink'] {
    return (this.#incoming as IncomingSnapshot).sink
  }

  async #beginDump(): Promise<void> {
    if (this.#incoming !== undefined) {
      await this.#seal(this.#incoming)
      this.#layer = { ...this.#layer, under: this.#layer.under + 1 }
    }
    this.#incoming = this.#context.snapshots.receive(this.#id, this.#layer)
  }

  async #seal(incoming: IncomingSnapshot): Promise<void> {
    const { last, under } = this.#layer
    const snapshot = summarize([...incoming.sink.images.values()], !last)
    await incoming.complete()
    incoming.seal()
    this.#incoming = undefined
    reportSealed(this.#context.options.report, this.#id, snapshot, this.#begun, last ? undefined : under + 1)
    this.#begun = performance.now()
  }

  #endImage({ name, bytes, writer, append }: Receiving): void {
    const sink = this.#sink
    const before = sink.images.get(name)
    writer.end({ name, size: bytes, digest: NO_DIGEST.finish() })
    this.#image = undefined
    if (before === undefined) return
    if (!append) {
      sink.discard(before)
      return
    }
    const pieces = Array.isArray(before.pieces) ? before.pieces : [...before.pieces]
    pieces.push(...(sink.images.get(name)?.pieces ?? []))
    sink.replace({ ...before, size: before.size + bytes, pieces })
  }
}

/** Appended bytes begin a piece of their own, and no page may lie across two pieces. Throws `FORMAT`. */
function refuseInPage({ name, append }: { name: ImageName; append: boolean }, size = 0): void {
  if (!append || !pagesPattern.test(name) || size % PAGE_BYTES === 0) return
  throw new Fault('FORMAT', `${name} is added to in the middle of a page`)
}
