/**
 * The image-cache's end of the wire of `criu --remote`: what an image-proxy of that time says, taken as a snapshot (`--wire criu-remote`).
 *
 * One connection is one conversation, of as many pre-dumps as there were and a dump, told apart by the `-D` of their criu. Each dump that another one
 * follows is a round of a chain (lib/store/pending-chains.ts), and the last one becomes the snapshot. It is never answered.
 *
 * Nothing in this protocol says that a dump is complete. What can be seen is seen to: the stream ends where an entry could begin, the last
 * dump has its inventory.img and is no pre-dump, and every page that its pagemaps speak of is there. A proxy that is killed
 * between two images looks the same as one that is done, and a changed byte of memory goes unnoticed.
 */
import { randomBytes } from 'node:crypto'
import { setImmediate as turn } from 'node:timers/promises'
import type { CacheContext, ConnectionPolicy } from '../cache/context.ts'
import { Fault } from '../fault.ts'
import { digestWords, NO_DIGEST } from '../format/digest.ts'
import { type ImageName, INVENTORY, type SnapshotId } from '../format/names.ts'
import { PAGE_BYTES, pagesPattern } from '../format/pagemap.ts'
import { asFault } from '../format/refusal.ts'
import { TOKEN_BYTES } from '../format/wire.ts'
import { freshId } from '../store/fresh-id.ts'
import type { MemoryWriter } from '../store/memory.ts'
import { writeInto } from '../store/piece-writer.ts'
import type { IncomingSnapshot } from '../store/snapshots.ts'
import type { Inlet } from '../stream/link.ts'
import { metered } from '../stream/metered.ts'
import type { TargetLink } from '../stream/resuming-receiver.ts'
import { summarize } from '../stream/summary.ts'
import { type RemoteWireEvent, remoteWireDecoder } from './cache-wire.ts'
import { IDS } from './local-wire.ts'
import { encodeSnapshotId } from './messages.ts'

/** For what is read at once; a connection has no other memory beside that for images. */
const READ_BYTES = 64 * 2 ** 10
/** A connection is quiet between two rounds, and nothing says that one is over: so many time-outs it may be. */
const MOST_TIMEOUTS = 10
/** Bytes that are taken before others get a turn. */
const MOST_AT_ONCE = 8 * 2 ** 20

/** Hears an image-proxy of `criu --remote` to its end. Reports what fails, and closes the link. */
export async function handleRemoteConnection(
  { link: bare }: TargetLink,
  context: CacheContext,
  { connection, source }: ConnectionPolicy,
): Promise<void> {
  const link = metered(bare, connection.moved)
  const id = freshId()
  const conversation = openConversation(id, context)
  connection.onClose(conversation.drop)
  try {
    await take(link.inlet, conversation, () => connection.enter('moving', MOST_TIMEOUTS * context.options.timeoutMs))
  } catch (error) {
    context.failures.tell(source, `${link.peer}, snapshot ${id}`, asFault(error))
    // What came counts as a round until the end; perhaps nothing did.
    context.snapshots.lose(id)
  } finally {
    conversation.drop()
    link.destroy()
  }
}

async function take(inlet: Inlet, conversation: Conversation, begin: () => void): Promise<void> {
  const decoder = remoteWireDecoder()
  const buffer = Buffer.allocUnsafeSlow(READ_BYTES)
  let said = false
  for (let since = 0; ; ) {
    const got = await inlet.read(buffer)
    if (got === 0) break
    if (!said) begin()
    said = true
    for (const event of decoder.push(buffer.subarray(0, got))) await conversation.hear(event)
    since += got
    if (since < MOST_AT_ONCE) continue
    since = 0
    await turn()
  }
  decoder.end()
  // Somebody looked whether a port is open.
  if (said) await conversation.end()
}

interface Conversation {
  hear(event: RemoteWireEvent): void | Promise<void>
  /** The stream has ended in order: the last dump is sealed. Throws `FAILED_DUMP` where there is none that is complete as far as can be seen. */
  end(): Promise<void>
  /** Forgets what came and is not sealed. */
  drop(): void
}

function openConversation(id: SnapshotId, { snapshots, options }: CacheContext): Conversation {
  const token = randomBytes(TOKEN_BYTES)
  let begun = performance.now()
  let rounds = 0
  let arriving: IncomingSnapshot | undefined
  /** Whether it is the last is known when the next one begins, or the stream ends. */
  let layer = { under: 0, last: false, token }
  let image: { name: ImageName; bytes: number; writer: MemoryWriter; append: boolean } | undefined
  const pushed: string[] = []
  let over = false

  function next(): void {
    layer = { under: rounds, last: false, token }
    arriving = snapshots.receive(id, layer)
  }

  function sink(): IncomingSnapshot['sink'] {
    // The decoder says of which dump they are before the first image.
    return (arriving as IncomingSnapshot).sink
  }

  async function seal(): Promise<void> {
    const sealing = arriving as IncomingSnapshot
    const came = summarize([...sink().images.values()], !layer.last)
    await sealing.complete()
    sealing.seal()
    arriving = undefined
    const ms = performance.now() - begun
    begun = performance.now()
    if (!layer.last) rounds++
    const { images, bytes } = came
    options.report({
      event: 'sealed',
      id,
      images: images.length,
      bytes,
      ms,
      digest: digestWords(came),
      ...(!layer.last && { round: rounds }),
    })
  }

  function close(): void {
    const { name, bytes, writer, append } = image as NonNullable<typeof image>
    const before = sink().images.get(name)
    writer.end({ name, size: bytes, digest: NO_DIGEST.finish() })
    image = undefined
    if (before === undefined) return
    if (!append) {
      sink().discard(before)
      return
    }
    const pieces = Array.isArray(before.pieces) ? before.pieces : [...before.pieces]
    pieces.push(...(sink().images.get(name)?.pieces ?? []))
    sink().replace({ ...before, size: before.size + bytes, pieces })
  }

  return {
    async hear(event) {
      switch (event.kind) {
        case 'push':
          pushed.push(event.snapshot)
          break
        case 'snapshot':
          if (arriving !== undefined) await seal()
          next()
          break
        case 'image':
          refuseInPage(event, sink().images.get(event.name)?.size)
          image = { ...event, writer: sink().open(event.name) }
          break
        case 'bytes':
          writeInto((image as NonNullable<typeof image>).writer, event.bytes)
          break
        case 'imageEnd':
          close()
          break
      }
    },
    async end() {
      if (arriving === undefined || !sink().images.has(INVENTORY)) {
        throw new Fault('FAILED_DUMP', `the stream ended without ${INVENTORY}: the dump did not finish`, {
          hint: "see the dump's own log, and the image-proxy's",
        })
      }
      const ids = Buffer.concat(pushed.map(encodeSnapshotId))
      image = { name: IDS, bytes: ids.length, writer: sink().open(IDS), append: false }
      writeInto(image.writer, ids)
      close()
      layer.last = true
      await seal()
      over = true
    },
    drop() {
      if (over) return
      arriving?.drop()
      snapshots.removeChain(id)
    },
  }
}

/** What is added lies behind what there is, and pages must not lie across it. */
function refuseInPage({ name, append }: { name: ImageName; append: boolean }, size = 0): void {
  if (!append || !pagesPattern.test(name) || size % PAGE_BYTES === 0) return
  throw new Fault('FORMAT', `${name} is added to in the middle of a page`)
}
