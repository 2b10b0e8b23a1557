/**
 * A transfer between two hosts without CRIU: a snapshot that is made up goes to a cache, which seals it and drops it
 * again.
 */
import { randomBytes } from 'node:crypto'
import { Fault } from '../fault.ts'
import { TOKEN_BYTES } from '../format/frame.ts'
import { INVENTORY, imageName, snapshotId } from '../format/names.ts'
import { connectMany } from '../stream/connection-groups.ts'
import type { Endpoint } from '../stream/endpoint.ts'
import { accepting } from '../stream/frames.ts'
import type { ImageSource, OpenImage } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { sendSnapshot } from '../stream/send.ts'
import { resumableLink } from '../stream/source-link.ts'
import type { Kind } from './target-process.ts'

const PIECE = 2 ** 20
/** Different pieces: more than a processor's cache holds. */
const SOME = 64

const answers = accepting('ack', 'reserved', 'sealed', 'fate', 'refused')

/**
 * Sends `bytes` bytes, a multiple of 1 MiB, to a cache as a proxy does. Returns the seconds until the cache had memory
 * ready, and those from the first byte until it had sealed all. Throws `LINK`, and what the cache refuses.
 */
export async function runLink(
  cache: Endpoint,
  connections: number,
  bytes: number,
  kind: Kind,
  signal: AbortSignal,
): Promise<{ reserve: number; transfer: number }> {
  const id = snapshotId(`bench-${process.pid}-${randomBytes(4).toString('hex')}`)
  const source = madeUp(bytes, kind)
  const token = randomBytes(TOKEN_BYTES)
  const connect = (stop: AbortSignal): Promise<Link> => connectMany(connections, cache, CONNECT_MS, stop)
  const line = resumableLink({ id, token, until: 'sealed', connect, timeoutMs: PATIENCE_MS })
  const { writer } = line
  const reader = await line.reader
  const cut = (): void => line.destroy(signal.reason as Error)
  signal.addEventListener('abort', cut)
  const expect = async (type: 'reserved' | 'sealed' | 'fate'): Promise<void> => {
    for (;;) {
      const frame = await reader.expect(answers)
      if (frame.type === type) return
      if (frame.type === 'refused') throw new Fault(frame.code, `the cache refused: ${frame.reason}`)
    }
  }
  try {
    const begun = performance.now()
    await writer.send({ type: 'reserve', offset: bytes })
    await expect('reserved')
    const reserved = performance.now()
    const sealed = expect('sealed')
    sealed.catch(() => {})
    await sendSnapshot(writer, id, source, { greeted: true, signal })
    await sealed
    const done = performance.now()
    await writer.send({ type: 'verdict', verdict: 'drop', token, id })
    await expect('fate')
    return { reserve: (reserved - begun) / 1000, transfer: (done - reserved) / 1000 }
  } finally {
    signal.removeEventListener('abort', cut)
    line.destroy()
  }
}

/** How long one attempt to reach the cache may take, and how long it may be out of reach. */
const [CONNECT_MS, PATIENCE_MS] = [10_000, 10_000]

const text = Buffer.from('the quick brown fox jumps over the lazy dog\n')
const piece: Record<Kind, () => Buffer> = {
  random: () => randomBytes(PIECE),
  zero: () => Buffer.alloc(PIECE),
  text: () => Buffer.alloc(PIECE, text),
  heap: () => Buffer.concat([Buffer.alloc(PIECE / 2, text), randomBytes(PIECE / 4), Buffer.alloc(PIECE / 4)]),
}

function madeUp(bytes: number, kind: Kind): ImageSource {
  const some = Array.from({ length: SOME }, piece[kind])
  const pieces = Array.from({ length: bytes / PIECE }, (_, index) => some[index % SOME] as Buffer)
  async function* images(): AsyncGenerator<OpenImage> {
    yield { name: imageName('pages-1.img'), body: { kind: 'pieces', pieces } }
    yield { name: INVENTORY, body: { kind: 'pieces', pieces: [Buffer.from('made up')] } }
  }
  return { images: images(), destroy() {} }
}
