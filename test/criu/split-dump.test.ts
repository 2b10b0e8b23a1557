/** The two ways of one dump, from clients written from the protocols to what a target gets. */
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { CAPTURE_SOCKET, CapturedImages } from '../../lib/criu/capture.ts'
import { openSplitDumps, type SplitDumps } from '../../lib/criu/split-dump.ts'
import { openWorkDir, type WorkDir } from '../../lib/criu/work-directory.ts'
import { Fault } from '../../lib/fault.ts'
import { layouts, psCommand } from '../../lib/format/page-server.ts'
import { PAGE_BYTES, pageFlag, readPagemap } from '../../lib/format/pagemap.ts'
import type { Fd } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { readSome, writeAll } from '../../lib/kernel/transfer.ts'
import { acceptUnix, socketPair } from '../../lib/kernel/unix.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { frameWriter } from '../../lib/stream/frames.ts'
import type { ImageSource } from '../../lib/stream/image.ts'
import { sendSnapshot } from '../../lib/stream/send.ts'
import type { Snapshot } from '../../lib/stream/summary.ts'
import { reasonOf, rejectsFault, turns, within } from '../expect.ts'
import { openFds } from '../kernel/fds.ts'
import { contents, id, pipeLinks, pool, receive } from '../stream/snapshots.ts'
import { type FakeDump, fakeDump } from '../support/fake-criu.ts'
import { dstType, encodeRecord } from '../support/page-server.ts'
import { eventually, temporary } from '../support/run.ts'
import { pattern } from '../support/talk.ts'

interface Context {
  /** What is open before the test begins, all its ends among it. */
  fds: number
  folder: ReturnType<typeof temporary>
  work: WorkDir
  splits: SplitDumps
  stream: FakeDump
  /** Our end of it. */
  streamed: Fd
  /** CRIU's end of the page server, and ours. */
  pages: Fd
  paged: Fd
}

const test = suite<Context>('criu/split-dump')

const PID = 77
const { OPEN2, ADD_F, CLOSE } = psCommand
const task = { type: dstType.task, id: PID }
const bytes = pattern(4 * PAGE_BYTES)
/** More than a pipe holds. */
const large = pattern(2 ** 21)
const inventory = pattern(50)
const never = new AbortController().signal

test.before.each(async (context) => {
  context.folder = temporary()
  context.work = openWorkDir(context.folder.path, CAPTURE_SOCKET)
  context.splits = openSplitDumps(true, never)
  context.stream = fakeDump(join(context.work.path, CAPTURE_SOCKET))
  context.streamed = await acceptUnix(context.work.listener)
  const [paged, pages] = socketPair()
  context.paged = paged
  context.pages = pages
  context.fds = openFds()
})

test.after.each(({ work, folder }) => {
  work.remove()
  folder.remove()
})

/** All four ends are closed in the end, by one side or the other. */
function played(name: string, body: (context: Context) => Promise<void>): void {
  test(name, async (context) => {
    await body(context)
    await eventually(() => openFds() <= context.fds - 4 || undefined, 'the end of all descriptors')
  })
}

const open = encodeRecord(layouts.old, { command: OPEN2, ...task })
const close = encodeRecord(layouts.old, { command: CLOSE })
function add(vaddr: number, pages: number): Buffer {
  return encodeRecord(layouts.old, { command: ADD_F, ...task, flags: pageFlag.present, pages, vaddr })
}

/** What a criu that streams is to the proxy, joined with its pages. */
function joinedWith({ splits, streamed }: Context): { source: ImageSource; end(): void } {
  const half = splits.stream(PID)
  const images = (): ImageSource => new CapturedImages(streamed)
  const criu = half.join({ pid: PID, bytes: undefined, open() {}, remove() {}, images })
  return { source: criu.images(), end: half.end }
}

async function sent(source: ImageSource): Promise<{ snapshot: Snapshot; images: Map<string, Buffer> }> {
  const { from, to } = await pipeLinks()
  const memory = new MemorySnapshot(pool)
  const receiving = receive(to.inlet, memory)
  receiving.catch(() => {})
  try {
    const snapshot = await within(sendSnapshot(frameWriter(from.outlet), id, source), 'the end of the snapshot')
    await from.outlet.finish()
    if (from !== to) from.destroy()
    await within(receiving)
    return { snapshot, images: contents(memory) }
  } finally {
    from.destroy()
    to.destroy()
    memory.drop()
  }
}

/** Nothing, where the socket was closed instead. */
async function answer(socket: Fd, length: number): Promise<string> {
  const into = Buffer.alloc(length)
  const got = await within(readSome(socket, into), 'an answer').catch((error: unknown) => {
    if (error instanceof Fault && error.code === 'LINK') return 0
    throw error
  })
  return into.subarray(0, got).toString('hex')
}

for (const order of ['the stream', 'the pages'] as const) {
  played(`${order} first: one complete dump, and neither half waits for the other`, async (context) => {
    const { splits, stream, pages, paged } = context
    const early = order === 'the pages' ? splits.pages(PID, paged) : undefined
    const { source, end } = joinedWith(context)
    const whole = sent(source)
    const coming = early ?? splits.pages(PID, paged)
    const files = stream.open('files.img')
    await coming
    await writeAll(pages, open)
    assert.is(await answer(pages, 1), '00')
    await writeAll(pages, Buffer.concat([add(0x1000, 2), bytes.subarray(0, 2 * PAGE_BYTES)]))
    // The pages are not at an end, and criu is busy with this.
    await within(stream.image('mm-77.img', large), 'an image of the stream to be read')
    await writeAll(pages, Buffer.concat([add(0x8000, 2), bytes.subarray(2 * PAGE_BYTES)]))
    await within(stream.image('inventory.img', inventory))
    await writeAll(pages, close)
    assert.is(await answer(pages, 4), '00000000')
    await writeAll(files, inventory)
    closeFd(files)
    stream.close()
    const { snapshot, images } = await whole
    end()
    closeFd(pages)
    assert.is(snapshot.images.at(-1)?.name, 'inventory.img')
    assert.equal([...images.keys()].sort(), [
      'files.img',
      'inventory.img',
      'mm-77.img',
      'pagemap-77.img',
      'pages-65537.img',
    ])
    assert.ok(images.get('pages-65537.img')?.equals(bytes))
    assert.ok(images.get('mm-77.img')?.equals(large))
    const { pagesId, entries } = readPagemap([images.get('pagemap-77.img') as Buffer])
    assert.is(pagesId, 65537)
    assert.equal(
      [...entries].map(({ vaddr, pages }) => [Number(vaddr), pages]),
      [
        [0x1000, 2],
        [0x8000, 2],
      ],
    )
  })
}

played('criu dies in the middle of its pages: no snapshot', async (context) => {
  const { splits, stream, pages, paged } = context
  const { source, end } = joinedWith(context)
  const whole = rejectsFault('FAILED_DUMP', sent(source))
  await stream.image('files.img', inventory)
  await stream.image('inventory.img', inventory)
  await splits.pages(PID, paged)
  await writeAll(pages, Buffer.concat([open, add(0x1000, 2), bytes.subarray(0, 100)]))
  closeFd(pages)
  stream.close()
  await whole
  end()
})

played('the pages end well, and the stream without inventory.img: no snapshot', async (context) => {
  const { splits, stream, pages, paged } = context
  const { source, end } = joinedWith(context)
  const whole = rejectsFault('FAILED_DUMP', sent(source))
  await stream.image('files.img', inventory)
  await splits.pages(PID, paged)
  await writeAll(pages, Buffer.concat([open, close]))
  stream.close()
  await whole
  end()
  closeFd(pages)
})

played('a proxy that is stopped in the middle answers nothing, and leaves nothing open', async (context) => {
  const { splits, stream, pages, paged } = context
  const { source, end } = joinedWith(context)
  const whole = reasonOf(sent(source))
  await stream.image('files.img', inventory)
  await splits.pages(PID, paged)
  await writeAll(pages, Buffer.concat([open, add(0x1000, 2), bytes.subarray(0, 100)]))
  assert.is(await answer(pages, 1), '00')
  await stream.image('inventory.img', inventory)
  source.destroy(new Fault('ABORTED', 'stopped'))
  assert.is(((await whole) as Fault).code, 'ABORTED')
  end()
  assert.is(await answer(pages, 4), '')
  closeFd(pages)
  stream.close()
})

played('a consumer that stops leaves no pipe of an image that was opened meanwhile', async (context) => {
  const { splits, stream, pages, paged } = context
  const { source, end } = joinedWith(context)
  const images = source.images[Symbol.asyncIterator]()
  const first = images.next()
  await stream.image('files.img', inventory)
  await splits.pages(PID, paged)
  const { body } = (await within(first)).value
  closeFd(body.fd)
  await writeAll(pages, Buffer.concat([open, add(0x1000, 2), bytes.subarray(0, 100)]))
  assert.is((await within(images.next())).value.name, 'pages-65537.img')
  await stream.image('core-77.img', inventory)
  await turns()
  await images.return?.()
  source.destroy(new Fault('ABORTED', 'stopped'))
  end()
  closeFd(pages)
  stream.close()
})

/** Sends a dump whose first image shows that its pages go elsewhere, and expects that it is refused. */
async function refusesFirstImage(context: Parameters<typeof joinedWith>[0]): Promise<void> {
  const { stream, pages, paged } = context
  const { source, end } = joinedWith(context)
  const whole = rejectsFault('REFUSED', sent(source))
  await stream.image('files.img', inventory)
  await whole
  end()
  stream.close()
  for (const fd of [pages, paged]) closeFd(fd)
}

played('the pages go elsewhere: refused while the tasks can run on', refusesFirstImage)

played('the stream goes elsewhere: the pages are refused, and not answered', async (context) => {
  const { splits, stream, streamed, pages, paged } = context
  await writeAll(pages, open)
  await rejectsFault('REFUSED', splits.pages(PID, paged))
  assert.is(await answer(pages, 1), '')
  closeFd(pages)
  stream.close()
  closeFd(streamed)
})

played('pages that come when the stream is over are refused', async (context) => {
  const { splits, stream, streamed, pages, paged } = context
  splits.stream(PID).end()
  await rejectsFault('REFUSED', splits.pages(PID, paged))
  closeFd(pages)
  stream.close()
  closeFd(streamed)
})

played(
  'one that goes on without pages: those that are here are not answered, and others not waited for',
  async (context) => {
    const { splits, stream, streamed, pages, paged } = context
    const half = splits.stream(PID)
    assert.ok(splits.streams(PID))
    await splits.pages(PID, paged)
    half.refuse()
    assert.is(await answer(pages, 1), '')
    const [late, theirs] = socketPair()
    await rejectsFault('REFUSED', splits.pages(PID, late))
    assert.is(await answer(theirs, 1), '')
    half.end()
    assert.not(splits.streams(PID))
    stream.close()
    for (const fd of [pages, theirs, streamed]) closeFd(fd)
  },
)

played('pages that are first wait until their stream is there, and no longer', async (context) => {
  const { splits, stream, streamed, pages, paged } = context
  const [ours, theirs] = socketPair()
  const others = splits.pages(PID + 1, ours).catch(() => 'refused')
  const met = splits.pages(PID, paged).then(() => 'met')
  const { end } = splits.stream(PID)
  assert.is(await within(Promise.race([others, met])), 'met')
  end()
  await within(others)
  stream.close()
  for (const fd of [pages, theirs, streamed]) closeFd(fd)
})

played('a second connection of the same criu is refused', async (context) => {
  const { splits, stream, pages, paged } = context
  const { source, end } = joinedWith(context)
  const whole = reasonOf(sent(source))
  await splits.pages(PID, paged)
  const [again, theirs] = socketPair()
  await rejectsFault('REFUSED', splits.pages(PID, again))
  assert.is(await answer(theirs, 1), '')
  closeFd(theirs)
  source.destroy(new Fault('ABORTED', 'stopped'))
  await stream.image('files.img', inventory).catch(() => {})
  await whole
  end()
  closeFd(pages)
  stream.close()
})

played('a proxy without a port for pages refuses at the first image', (context) =>
  refusesFirstImage({ ...context, splits: openSplitDumps(false, never) }),
)

test.run()
