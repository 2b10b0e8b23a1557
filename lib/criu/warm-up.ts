/**
 * A rehearsal: a small snapshot goes the whole way once, within this process, from a CRIU that is played to one that is played.
 *
 * Node compiles a function when it is first called, and what is called while the tasks are frozen is compiled while they are
 * frozen: of a process of 8 MiB that took 10 of 80 ms. So both daemons rehearse before their first dump, while the target makes
 * memory ready.
 */
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { type ImageName, INVENTORY, imageName, snapshotId } from '../format/names.ts'
import { encodePagemap, PAGE_BYTES, pageFlag } from '../format/pagemap.ts'
import { encodeRequest } from '../format/streamer.ts'
import { TOKEN_BYTES } from '../format/wire.ts'
import { type Fd, makePipe } from '../kernel/fd.ts'
import { address } from '../kernel/libc.ts'
import { closeFd } from '../kernel/readiness.ts'
import { readSome, writeAll } from '../kernel/transfer.ts'
import { sendFd, socketPair } from '../kernel/unix.ts'
import type { StoredImage } from '../store/memory.ts'
import { fdLink } from '../stream/fd-link.ts'
import { accepting, frameReader, frameWriter } from '../stream/frames.ts'
import type { ImageSink } from '../stream/image.ts'
import type { Link } from '../stream/link.ts'
import { receiveSnapshot } from '../stream/receive.ts'
import { openTargetLink } from '../stream/resuming-receiver.ts'
import { sendSnapshot } from '../stream/send.ts'
import { resumableLink } from '../stream/source-link.ts'
import { captureImages } from './capture.ts'
import { serve } from './serve.ts'

/** Some of each: those that fit into one read, and those that do not; one that is written anew. */
const [LARGE, PAGEMAP] = [imageName('1.img'), imageName('pagemap-1.img')]
const names: readonly ImageName[] = [LARGE, imageName('2.img'), imageName('3.img'), PAGEMAP, INVENTORY]
const LARGEST = 2 ** 17

function contentsOf(name: ImageName): Buffer {
  if (name !== PAGEMAP) return Buffer.alloc(name === LARGE ? LARGEST : 100)
  return Buffer.concat([...encodePagemap(1, [{ vaddr: PAGE_BYTES, pages: 1, flags: pageFlag.present }])])
}

/** It takes 30 ms; whatever keeps it from its end must not keep the dump. */
const MOST_MS = 1000

let rehearsed: Promise<void> | undefined

/** The first call rehearses, whoever else calls waits for that one. Never throws. */
export function warmUp(): Promise<void> {
  rehearsed ??= runWarmUp().catch(() => {})
  return rehearsed
}

export async function runWarmUp(): Promise<void> {
  const [near, far] = socketPair()
  const receiver = openTargetLink(fdLink(far, 'a rehearsal', 'socket'))
  const [token, id] = [Buffer.alloc(TOKEN_BYTES, 1), snapshotId('rehearsal')]
  const links = [fdLink(near, 'a rehearsal', 'socket')]
  const connect = async (): Promise<Link> => {
    const link = links.pop()
    if (link === undefined) throw new Error('a rehearsal has one link')
    return link
  }
  const sender = resumableLink(id, token, 'sealed', connect, MOST_MS)
  const images = new Map<ImageName, StoredImage>()
  const late = setTimeout(MOST_MS, undefined, { ref: false }).then(() => {
    throw new Fault('TIMEOUT', 'a rehearsal')
  })
  const moved = Promise.all([received(receiver, sinkTo(images)), sent(sender)])
  const whole = moved.then(() => restored(images))
  try {
    await Promise.race([whole, late])
  } finally {
    // Not awaited: what hangs may hang for ever.
    whole.catch(() => {})
    sender.destroy()
    receiver.link.destroy()
  }
}

const beginning = accepting('snapshot')
const answers = accepting('ack', 'sealed')

async function sent({ reader, writer }: ReturnType<typeof resumableLink>): Promise<void> {
  const [socket, criu] = socketPair()
  const dumping = dump(criu)
  dumping.catch(() => {})
  await sendSnapshot(writer, snapshotId('rehearsal'), captureImages(socket), { greeted: true })
  await dumping
  while ((await (await reader).expect(answers)).type !== 'sealed');
}

async function received({ link, onGot, outlive }: ReturnType<typeof openTargetLink>, sink: ImageSink): Promise<void> {
  const [reader, writer] = [frameReader(link.inlet, { onGot }), frameWriter(link.outlet)]
  await writer.send({ type: 'hello' })
  await reader.expect(beginning)
  const { digest } = await receiveSnapshot(reader, sink, {
    onAck: (channel, offset) => writer.send({ type: 'ack', channel, offset }),
    onHandOver: (_until, token = Buffer.alloc(TOKEN_BYTES)) => outlive(token, MOST_MS),
  })
  await writer.send({ type: 'sealed', digest })
}

/** No pool: it would map more than is used. */
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
          images.set(name, { ...entry, pieces: [{ address: address(window), window: window.subarray(0, filled) }] })
        },
      }
    },
  }
}

async function restored(images: ReadonlyMap<ImageName, StoredImage>): Promise<void> {
  const [socket, criu] = socketPair()
  await Promise.all([serve(socket, async () => images), restore(criu)])
}

/** A criu that dumps. */
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

/** A criu that restores. */
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
