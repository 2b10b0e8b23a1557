/**
 * Warms up the code: a small snapshot is dumped, sent, received and restored once within this process, by two simulated
 * CRIUs.
 *
 * Node compiles a function when it is first called, and a function that is first called while the tasks are frozen is
 * compiled during the freeze: for a process of 8 MiB that took 10 of 80 ms. So both daemons warm up before their first
 * dump, while the target makes memory ready.
 */
import { TOKEN_BYTES } from '../format/frame.ts'
import { type ImageName, INVENTORY, imageName, snapshotId } from '../format/names.ts'
import { encodePagemap, PAGE_BYTES, pageFlag } from '../format/pagemap.ts'
import { encodeRequest } from '../format/streamer.ts'
import { type Fd, makePipe } from '../kernel/fd.ts'
import { addressOf } from '../kernel/mapped-memory.ts'
import { closeFd } from '../kernel/readiness.ts'
import { readSome, writeAll } from '../kernel/transfer.ts'
import { sendFd, socketPair } from '../kernel/unix.ts'
import type { StoredImage } from '../store/stored-image.ts'
import { fdLink } from '../stream/fd-link.ts'
import { accepting, frameReader, frameWriter } from '../stream/frames.ts'
import type { ImageSink } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { receiveSnapshot } from '../stream/receive.ts'
import { TargetLink } from '../stream/resuming-receiver.ts'
import { sendSnapshot } from '../stream/send.ts'
import { resumableLink } from '../stream/source-link.ts'
import { rejectAfter } from '../stream/wait.ts'
import { CapturedImages } from './capture.ts'
import { serve } from './serve.ts'

/** One image that does not fit into one read, some that do, and a pagemap, which is written anew for CRIU. */
const [LARGE, PAGEMAP] = [imageName('1.img'), imageName('pagemap-1.img')]
const names: readonly ImageName[] = [LARGE, imageName('2.img'), imageName('3.img'), PAGEMAP, INVENTORY]
const LARGEST = 2 ** 17

function contentsOf(name: ImageName): Buffer {
  if (name !== PAGEMAP) return Buffer.alloc(name === LARGE ? LARGEST : 100)
  return Buffer.concat([...encodePagemap(1, [{ vaddr: PAGE_BYTES, pages: 1, flags: pageFlag.present }])])
}

/** The most time for the warm-up, which takes 30 ms: the dump does not wait for one that hangs. */
const MOST_MS = 1000

let warm: Promise<void> | undefined

/** Warms up at the first call; later calls wait for the same warm-up. Never throws. */
export function warmUp(): Promise<void> {
  warm ??= runWarmUp().catch(() => {})
  return warm
}

/** One warm-up. Throws what fails in it, and `TIMEOUT`. */
export async function runWarmUp(): Promise<void> {
  const [near, far] = socketPair()
  const receiver = new TargetLink(fdLink(far, 'the warm-up', 'socket'))
  const [token, id] = [Buffer.alloc(TOKEN_BYTES, 1), snapshotId('warm-up')]
  const links = [fdLink(near, 'the warm-up', 'socket')]
  const connect = async (): Promise<Link> => {
    const link = links.pop()
    if (link === undefined) throw new Error('the warm-up has one link')
    return link
  }
  const sender = resumableLink({ id, token, until: 'sealed', connect, timeoutMs: MOST_MS })
  const images = new Map<ImageName, StoredImage>()
  const late = rejectAfter(MOST_MS, 'the warm-up did not end', new AbortController().signal)
  const moved = Promise.all([receive(receiver, sinkTo(images)), send(sender)])
  const all = moved.then(() => serveTo(images))
  try {
    await Promise.race([all, late])
  } finally {
    // Not awaited: it may hang for ever.
    all.catch(() => {})
    sender.destroy()
    receiver.link.destroy()
  }
}

const firstFrame = accepting('snapshot')
const answers = accepting('ack', 'sealed')

async function send({ reader, writer }: ReturnType<typeof resumableLink>): Promise<void> {
  const [socket, criu] = socketPair()
  const dumped = dump(criu)
  dumped.catch(() => {})
  await sendSnapshot(writer, snapshotId('warm-up'), new CapturedImages(socket), { greeted: true })
  await dumped
  while ((await (await reader).expect(answers)).type !== 'sealed');
}

async function receive(target: TargetLink, sink: ImageSink): Promise<void> {
  const { inlet, outlet } = target.link
  const writer = frameWriter(outlet)
  const reader = frameReader(inlet, { onGot: (position) => target.onGot(position) })
  await writer.send({ type: 'hello' })
  await reader.expect(firstFrame)
  const { digest } = await receiveSnapshot(reader, sink, {
    onAck: (channel, offset) => writer.send({ type: 'ack', channel, offset }),
    onHandOver: (_until, token = Buffer.alloc(TOKEN_BYTES)) => target.outlive(token, MOST_MS),
  })
  await writer.send({ type: 'sealed', digest })
}

/** Keeps images in plain buffers: a pool would map more memory than is used. */
function sinkTo(images: Map<ImageName, StoredImage>): ImageSink {
  return {
    open(name) {
      const window = Buffer.allocUnsafeSlow(LARGEST)
      let filled = 0
      return {
        room: () => window.subarray(filled),
        wrote(bytes) {
          filled += bytes
        },
        end(entry) {
          images.set(name, { ...entry, pieces: [{ address: addressOf(window), window: window.subarray(0, filled) }] })
        },
      }
    },
  }
}

async function serveTo(images: ReadonlyMap<ImageName, StoredImage>): Promise<void> {
  const [socket, criu] = socketPair()
  await Promise.all([serve(socket, async () => images), restore(criu)])
}

/** Simulates a criu that dumps. */
async function dump(socket: Fd): Promise<void> {
  for (const name of names) {
    const [out, into] = makePipe()
    await writeAll(socket, encodeRequest(name))
    await sendFd(socket, out)
    await writeAll(into, contentsOf(name))
    closeFd(into)
  }
  closeFd(socket)
}

/** Simulates a criu that restores. */
async function restore(socket: Fd): Promise<void> {
  const scratch = Buffer.alloc(2 ** 16)
  for (const name of [imageName('absent.img'), ...names]) {
    await writeAll(socket, encodeRequest(name))
    const bytes = await readSome(socket, scratch)
    if (scratch[bytes - 1] === 0) continue
    const [out, into] = makePipe()
    await sendFd(socket, into)
    while ((await readSome(out, scratch)) > 0);
    closeFd(out)
  }
  closeFd(socket)
}
