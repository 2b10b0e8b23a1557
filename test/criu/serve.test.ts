import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { SERVE_SOCKET, type Served, serve } from '../../lib/criu/serve.ts'
import { openWorkDir, type WorkDir } from '../../lib/criu/work-directory.ts'
import { Fault } from '../../lib/fault.ts'
import type { ImageName } from '../../lib/format/names.ts'
import { encodePagemap, pageFlag } from '../../lib/format/pagemap.ts'
import { encodeRequest } from '../../lib/format/streamer.ts'
import { makePipe, queued } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { readSome, writeAll } from '../../lib/kernel/transfer.ts'
import { acceptUnix } from '../../lib/kernel/unix.ts'
import { ChainMemory } from '../../lib/store/chain-memory.ts'
import { MemorySnapshot } from '../../lib/store/memory.ts'
import { Pool } from '../../lib/store/pool.ts'
import { rejectsFault } from '../expect.ts'
import { strangeFds } from '../kernel/fds.ts'
import { pagemapOf } from '../support/chains.ts'
import { type FakeRestore, fakeRestore, readToEnd } from '../support/fake-criu.ts'
import { type Brief, inventory, pageOf, part, put } from '../support/rounds.ts'
import { fixtures, temporary } from '../support/run.ts'
import { stored } from '../support/stored.ts'
import { pattern, talk } from '../support/talk.ts'

interface Context {
  work: WorkDir
  folder: ReturnType<typeof temporary>
  criu: FakeRestore
  snapshot: MemorySnapshot
  served: Promise<Served>
  fds: number
}

const test = suite<Context>('criu/serve')

const contents: Record<string, Buffer> = {
  'inventory.img': pattern(87, 1),
  'empty.img': Buffer.alloc(0),
  'small.img': pattern(5000, 2),
  'middle.img': pattern(200_000, 3),
  'large.img': pattern(5_300_001, 4),
}

const store = (images: Record<string, Buffer>): Promise<MemorySnapshot> => stored(new Pool(64 * 2 ** 20), images)

const openFds = (): number => readdirSync('/proc/self/fd').length

test.before.each(async (context) => {
  context.fds = openFds()
  context.folder = temporary()
  context.work = openWorkDir(context.folder.path, SERVE_SOCKET)
  context.criu = fakeRestore(join(context.work.path, SERVE_SOCKET))
  context.snapshot = await store(contents)
  context.served = acceptUnix(context.work.listener).then((socket) =>
    serve(socket, async () => context.snapshot.images),
  )
  context.served.catch(() => {})
})

test.after.each((context) => {
  context.work.remove()
  context.folder.remove()
})

async function codeOf(promise: Promise<unknown>): Promise<string> {
  const reason: unknown = await promise.then(
    () => undefined,
    (error: unknown) => error,
  )
  return reason instanceof Fault ? reason.code : String(reason)
}

test('every image arrives byte for byte, in any order, as often as asked', async ({ criu, served }) => {
  for (const name of ['large.img', 'empty.img', 'inventory.img', 'middle.img', 'small.img', 'large.img']) {
    assert.ok((await criu.image(name))?.equals(contents[name] as Buffer), name)
  }
  criu.close()
  assert.is((await served).images.length, 6)
})

test('an image that is not there', async ({ criu, served }) => {
  assert.not(await criu.ask('memfd.img'))
  assert.ok(await criu.image('small.img'))
  criu.close()
  assert.equal((await served).images, ['small.img'])
})

test('the conversation of a real restore gets the answers that it got', async ({ work, criu }) => {
  criu.close()
  const names = readdirSync(join(fixtures, 'images'))
  const snapshot = await store(Object.fromEntries(names.map((name) => [name, pattern(999)])))
  const real = fakeRestore(join(work.path, SERVE_SOCKET))
  const served = acceptUnix(work.listener).then((socket) => serve(socket, async () => snapshot.images))
  let pipes = 0
  for (const line of talk('restore')) {
    if (line.kind === 'sent') real.raw(line.bytes)
    if (line.kind === 'answered') {
      const answer = Buffer.alloc(line.bytes.length)
      await readSome(real.socket, answer)
      assert.is(answer.toString('hex'), line.bytes.toString('hex'))
    }
    if (line.kind === 'pipe') {
      const pipe = real.pipe()
      assert.is((await readToEnd(pipe)).length, 999)
      closeFd(pipe)
      pipes++
    }
  }
  real.close()
  assert.is((await served).images.length, pipes)
})

test('a pipe left half read does not hold up the next image', async ({ criu, served }) => {
  assert.ok(await criu.ask('large.img'))
  const half = criu.pipe()
  const taken = Buffer.alloc(100_000)
  const got = await readSome(half, taken)
  assert.ok(await criu.image('small.img'))
  const rest = await readToEnd(half)
  closeFd(half)
  assert.ok(Buffer.concat([taken.subarray(0, got), rest]).equals(contents['large.img'] as Buffer))
  criu.close()
  assert.equal((await served).images, ['small.img', 'large.img'])
})

test('a flattened image of many thousand ranges arrives whole, and each page is given back when it was lent', async ({
  work,
  criu,
}) => {
  criu.close()
  const pool = new Pool(64 * 2 ** 20)
  const sink = new MemorySnapshot(pool, true)
  const flat = new ChainMemory(sink)
  const { parent, present } = pageFlag
  put(sink, part('old', [[0, 3000, present]]))
  await flat.round()
  const briefs = Array.from({ length: 3000 }, (_, at): Brief => [at, 1, at % 7 === 0 ? present : parent])
  put(sink, { ...part('new', briefs), 'inventory.img': inventory })
  await flat.last()
  await flat.settle()
  const before = pool.used
  for (const early of [false, true]) {
    const restore = fakeRestore(join(work.path, SERVE_SOCKET))
    const served = acceptUnix(work.listener).then((socket) =>
      serve(socket, async () => sink.images, early ? { onTaken: (piece) => sink.release(piece) } : {}),
    )
    const bytes = await restore.image('pages-1.img')
    assert.is(bytes?.length, 3000 * 4096)
    for (let at = 0; at < 3000; at++) {
      const page = bytes?.subarray(at * 4096, (at + 1) * 4096)
      assert.ok(page?.equals(pageOf(at % 7 === 0 ? 'new' : 'old', at)), `page ${at}`)
    }
    restore.close()
    await served
    assert.is(pool.used, early ? before - 3000 * 4096 : before)
  }
  sink.drop()
  assert.is(pool.used, 0)
})

test('a pagemap is served as every CRIU reads it, and as it is where it is not understood', async ({ work, criu }) => {
  criu.close()
  const { present } = pageFlag
  const entries = Array.from({ length: 20_000 }, (_, at) => ({ vaddr: at * 8192, pages: 1 + (at % 2), flags: present }))
  const both = Buffer.concat([...encodePagemap(7, entries)])
  const newest = pagemapOf('4.2', 7, entries)
  const foreign = Buffer.concat([newest, Buffer.from('04000000' + '08003001', 'hex')])
  const cut = newest.subarray(0, -1)
  assert.ok(both.length > 2 ** 18 && !both.equals(newest))
  const snapshot = await store({
    'pagemap-1.img': newest,
    'pagemap-shmem-2.img': pagemapOf('before flags', 7, entries),
    'pagemap-3.img': foreign,
    'pagemap-4.img': cut,
    'pagemap-5.img': Buffer.alloc(0),
  })
  const served = acceptUnix(work.listener).then((socket) => serve(socket, async () => snapshot.images))
  const restore = fakeRestore(join(work.path, SERVE_SOCKET))
  const expected = { '1': both, 'shmem-2': both, '3': foreign, '4': cut, '5': Buffer.alloc(0) }
  for (const [which, bytes] of Object.entries(expected)) {
    assert.ok((await restore.image(`pagemap-${which}.img`))?.equals(bytes), which)
  }
  restore.close()
  await served
})

test('a pipe closed early is no error and does not count as taken', async ({ criu, served }) => {
  assert.ok(await criu.ask('large.img'))
  closeFd(criu.pipe())
  assert.ok(await criu.image('inventory.img'))
  criu.close()
  assert.equal((await served).images, ['inventory.img'])
})

test('a client that dies between request and descriptor', async ({ criu, served, fds }) => {
  assert.ok(await criu.ask('large.img'))
  criu.close()
  assert.is(await codeOf(served), 'CRIU_PROTOCOL')
  assert.is(openFds(), fds + 1, 'only the listener is open')
})

test('a descriptor that is not the write end of a pipe gets nothing, and images stay as they are', async (context) => {
  const { work, criu, served, snapshot, fds } = context
  criu.close()
  await served
  const [out, into] = makePipe()
  await writeAll(into, Buffer.alloc(4096, 'EVIL'))
  const strangers = strangeFds()
  for (const [what, fd] of Object.entries({ 'a read end': out, ...strangers.fds })) {
    const restore = fakeRestore(join(work.path, SERVE_SOCKET))
    const serving = acceptUnix(work.listener).then((socket) => serve(socket, async () => snapshot.images))
    const refused = rejectsFault('CRIU_PROTOCOL', serving, what)
    assert.ok(await restore.ask('large.img'))
    restore.raw(Buffer.alloc(1), [fd])
    assert.is((await refused).message, 'a request with a descriptor that is not the write end of a pipe')
    restore.close()
  }
  assert.is(queued(out), 4096, 'nothing was taken out of the pipe')
  for (const end of [out, into]) closeFd(end)
  strangers.close()
  assert.is(openFds(), fds + 1, 'only the listener is open')
  const last = fakeRestore(join(work.path, SERVE_SOCKET))
  const serving = acceptUnix(work.listener).then((socket) => serve(socket, async () => snapshot.images))
  assert.ok((await last.image('large.img'))?.equals(contents['large.img'] as Buffer))
  last.close()
  await serving
})

test('a name that leaves the directory', async ({ criu, served }) => {
  criu.raw(encodeRequest('../inventory.img'))
  assert.is(await codeOf(served), 'NAME')
  criu.close()
})

test('the first request waits for its snapshot, and learns that there is none', async ({ work, criu }) => {
  criu.close()
  let give: (images: MemorySnapshot['images']) => void = () => {}
  const waiting = new Promise<MemorySnapshot['images']>((resolve) => {
    give = resolve
  })
  const early = fakeRestore(join(work.path, SERVE_SOCKET))
  const served = acceptUnix(work.listener).then((socket) => serve(socket, () => waiting))
  const image = early.image('inventory.img')
  assert.is(await Promise.race([image, new Promise((resolve) => setTimeout(resolve, 100, 'parked'))]), 'parked')
  give((await store(contents)).images)
  assert.ok((await image)?.equals(contents['inventory.img'] as Buffer))
  early.close()
  await served

  const late = fakeRestore(join(work.path, SERVE_SOCKET))
  const refused = acceptUnix(work.listener).then((socket) =>
    serve(socket, async (): Promise<ReadonlyMap<ImageName, never>> => {
      throw new Fault('TIMEOUT', 'none came')
    }),
  )
  refused.catch(() => {})
  const reply = late.image('inventory.img')
  assert.is(await codeOf(refused), 'TIMEOUT')
  assert.match(await codeOf(reply), 'closed instead of a reply')
  late.close()
})

test.run()
