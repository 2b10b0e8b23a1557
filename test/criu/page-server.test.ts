import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { SocketPageServer } from '../../lib/criu/page-server.ts'
import { Fault } from '../../lib/fault.ts'
import type { ImageName } from '../../lib/format/names.ts'
import { type Layout, layouts, type PsRecord, psCommand } from '../../lib/format/page-server.ts'
import { PAGE_BYTES, pageFlag, readPagemap } from '../../lib/format/pagemap.ts'
import type { Fd } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { readSome, writeAll } from '../../lib/kernel/transfer.ts'
import { socketPair } from '../../lib/kernel/unix.ts'
import { reasonOf, rejectsFault, turns, waits, within } from '../expect.ts'
import { openFds } from '../kernel/fds.ts'
import { readToEnd } from '../support/fake-criu.ts'
import { dstType, encodeRecord, writeImages } from '../support/page-server.ts'
import { temporary } from '../support/run.ts'
import { pattern } from '../support/talk.ts'

const test = suite<{ ours: Fd; theirs: Fd; folder: ReturnType<typeof temporary>; fds: number }>('criu/page-server')

const { OPEN2, PARENT, ADD_F, CLOSE } = psCommand
const { parent, present } = pageFlag
const none = () => false
const task = { type: dstType.task, id: 77 }
const pages = pattern(2 * PAGE_BYTES)

test.before.each((context) => {
  context.folder = temporary()
  context.fds = openFds()
  const [ours, theirs] = socketPair()
  context.ours = ours
  context.theirs = theirs
})
test.after.each((context) => context.folder.remove())

function record(command: number, rest: Partial<PsRecord> = {}, layout: Layout = layouts.new): Buffer {
  return encodeRecord(layout, { command, ...rest })
}

/** A short conversation: one task with two pages, and CLOSE. */
function short(layout: Layout = layouts.new): Buffer {
  const add = record(ADD_F, { ...task, flags: present, pages: 2, vaddr: 0x1000 }, layout)
  return Buffer.concat([record(OPEN2, task, layout), add, pages, record(CLOSE, {}, layout)])
}

async function answer(socket: Fd, bytes: number): Promise<string> {
  const into = Buffer.alloc(bytes)
  const got = await within(readSome(socket, into), 'an answer')
  return into.subarray(0, got).toString('hex')
}

for (const layout of Object.values(layouts)) {
  test(`a conversation with ${layout} bytes a record`, async ({ ours, theirs, folder, fds }) => {
    const asked: string[] = []
    const hasParent = (name: ImageName): boolean => asked.push(name) > 0 && name === 'pagemap-77.img'
    const source = new SocketPageServer(ours, hasParent)
    const written = writeImages(source, folder.path)
    const shmem = { type: dstType.shmem, id: 6 }
    await writeAll(theirs, record(PARENT, task, layout))
    assert.is(await answer(theirs, 4), '01000000')
    await writeAll(theirs, record(OPEN2, task, layout))
    assert.is(await answer(theirs, 1), '01')
    await writeAll(theirs, record(ADD_F, { ...task, flags: parent, pages: 9, vaddr: 0x1000 }, layout))
    await writeAll(theirs, record(ADD_F, { ...task, flags: present, pages: 2, vaddr: 0xa000 }, layout))
    await writeAll(theirs, pages.subarray(0, 5000))
    await turns(5)
    await writeAll(theirs, pages.subarray(5000))
    await writeAll(theirs, record(OPEN2, shmem, layout))
    assert.is(await answer(theirs, 1), '00')
    assert.ok(await waits(written))
    await writeAll(theirs, record(CLOSE, {}, layout))
    assert.equal(await within(written), ['pages-65537.img', 'pagemap-77.img', 'pages-65538.img', 'pagemap-shmem-6.img'])
    assert.equal(asked, ['pagemap-77.img', 'pagemap-77.img', 'pagemap-shmem-6.img'])
    const image = (name: string): Buffer => readFileSync(join(folder.path, name))
    assert.ok(image('pages-65537.img').equals(pages))
    const { pagesId, entries } = readPagemap([image('pagemap-77.img')])
    assert.is(pagesId, 65537)
    assert.equal(
      [...entries],
      [
        { vaddr: 0x1000, pages: 9, flags: parent },
        { vaddr: 0xa000, pages: 2, flags: present },
      ],
    )
    const closing = readSome(theirs, Buffer.alloc(4))
    assert.ok(await waits(closing), 'CLOSE is not answered by itself')
    await source.answerClose(true)
    assert.is(await within(closing), 4)
    assert.is(await answer(theirs, 1), '', 'the socket is closed')
    closeFd(theirs)
    assert.is(openFds(), fds)
  })
}

test('CLOSE is answered with a failure', async ({ ours, theirs, folder, fds }) => {
  const source = new SocketPageServer(ours, none)
  await writeAll(theirs, short())
  await within(writeImages(source, folder.path))
  await source.answerClose(false)
  assert.is((await within(readToEnd(theirs))).toString('hex'), '00ffffffff')
  assert.match(String(await reasonOf(source.answerClose(true))), /was answered/)
  closeFd(theirs)
  assert.is(openFds(), fds)
})

test('a first CLOSE of either length is answered', async ({ ours, theirs, folder }) => {
  const source = new SocketPageServer(ours, none)
  await writeAll(theirs, record(CLOSE, {}, layouts.new).subarray(0, layouts.old))
  assert.equal(await within(writeImages(source, folder.path)), [])
  await writeAll(theirs, Buffer.alloc(layouts.new - layouts.old))
  await source.answerClose(true)
  assert.is((await within(readToEnd(theirs))).toString('hex'), '00000000')
  closeFd(theirs)
})

test('a connection that is cut, at every offset', async ({ ours, theirs, fds }) => {
  closeFd(ours)
  closeFd(theirs)
  for (const layout of Object.values(layouts)) {
    const whole = short(layout)
    const near = (at: number): boolean =>
      [0, layout, 2 * layout, whole.length - layout].some((edge) => Math.abs(at - edge) <= layout)
    for (let at = 0; at < whole.length; at += near(at) ? 1 : 211) {
      const { path, remove } = temporary()
      const [server, client] = socketPair()
      const source = new SocketPageServer(server, none)
      const written = writeImages(source, path)
      await writeAll(client, whole.subarray(0, at))
      closeFd(client)
      const fault = await rejectsFault('FAILED_DUMP', written, `cut at ${at}`)
      assert.match(fault.message, /^CRIU left the page server/)
      await rejectsFault('FAILED_DUMP', source.answerClose(true), 'nothing to be answered')
      remove()
    }
  }
  assert.is(openFds(), fds)
})

test('a lie of the client ends the connection', async ({ ours, theirs, fds }) => {
  closeFd(ours)
  closeFd(theirs)
  const twice = Buffer.concat([record(OPEN2, task), record(OPEN2, task)])
  for (const lie of [record(9, task), record(PARENT, { type: 99, id: 1 }), twice]) {
    const { path, remove } = temporary()
    const [server, client] = socketPair()
    await writeAll(client, lie)
    await rejectsFault('CRIU_PROTOCOL', writeImages(new SocketPageServer(server, none), path))
    await within(readToEnd(client), 'the end of the connection')
    closeFd(client)
    remove()
  }
  assert.is(openFds(), fds)
})

for (const [where, bytes] of [
  ['before the first record', 0],
  ['in a record', 20],
  ['between records', 32],
  ['in the middle of pages', 1000],
] as const) {
  test(`destroy releases one that waits ${where}`, async ({ ours, theirs, folder, fds }) => {
    const source = new SocketPageServer(ours, none)
    const written = writeImages(source, folder.path)
    await writeAll(theirs, short().subarray(0, bytes))
    assert.ok(await waits(written))
    source.destroy(new Fault('TIMEOUT', 'enough'))
    source.destroy(new Fault('IO', 'later'))
    assert.is((await rejectsFault('TIMEOUT', written)).message, 'enough')
    await within(readToEnd(theirs), 'the end of the connection')
    closeFd(theirs)
    assert.is(openFds(), fds)
  })
}

test('destroy before images are asked for, between two pieces, and instead of the last answer', async ({
  ours,
  theirs,
  folder,
  fds,
}) => {
  const unasked = new SocketPageServer(ours, none)
  unasked.destroy(new Fault('TIMEOUT', 'before'))
  assert.is((await rejectsFault('TIMEOUT', writeImages(unasked, folder.path))).message, 'before')
  closeFd(theirs)

  const [server, client] = socketPair()
  const source = new SocketPageServer(server, none)
  await writeAll(client, short())
  const images = source.images[Symbol.asyncIterator]()
  const opened = await within(images.next())
  source.destroy(new Fault('TIMEOUT', 'between'))
  if (opened.value?.body.kind !== 'pieces') throw new Error('no pieces')
  const { pieces } = opened.value.body
  const taking = (async () => {
    for await (const _ of pieces);
  })()
  await rejectsFault('TIMEOUT', taking)
  await rejectsFault('TIMEOUT', images.next())
  closeFd(client)

  const [third, criu] = socketPair()
  const last = new SocketPageServer(third, none)
  await writeAll(criu, short())
  await within(writeImages(last, folder.path))
  last.destroy(new Fault('TIMEOUT', 'at last'))
  await rejectsFault('TIMEOUT', last.answerClose(true))
  assert.is((await within(readToEnd(criu))).toString('hex'), '00', 'CLOSE got no answer')
  closeFd(criu)
  assert.is(openFds(), fds)
})

test('who leaves before the end closes the socket; who leaves pages out is told', async ({ ours, theirs, fds }) => {
  const source = new SocketPageServer(ours, none)
  await writeAll(theirs, short())
  for await (const _ of source.images) break
  assert.is((await within(readToEnd(theirs))).toString('hex'), '00')
  closeFd(theirs)

  const [server, client] = socketPair()
  const skipped = new SocketPageServer(server, none)
  await writeAll(client, short())
  const taking = (async () => {
    for await (const _ of skipped.images);
  })()
  assert.match(String(await reasonOf(taking)), /pages were not taken to their end/)
  closeFd(client)
  assert.is(openFds(), fds)
})

test.run()
