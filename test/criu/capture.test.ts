import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { CAPTURE_SOCKET, CapturedImages } from '../../lib/criu/capture.ts'
import { openWorkDir, type WorkDir } from '../../lib/criu/work-directory.ts'
import { Fault, type FaultCode } from '../../lib/fault.ts'
import { encodeRequest } from '../../lib/format/streamer.ts'
import { type Fd, makePipe } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { acceptUnix } from '../../lib/kernel/unix.ts'
import { rejectsFault } from '../expect.ts'
import { strangeFds } from '../kernel/fds.ts'
import { type FakeDump, fakeDump, readToEnd } from '../support/fake-criu.ts'
import { temporary } from '../support/run.ts'
import { pattern, talk } from '../support/talk.ts'

const test = suite<{ work: WorkDir; folder: ReturnType<typeof temporary>; criu: FakeDump; fds: number }>('criu/capture')

const openFds = (): number => readdirSync('/proc/self/fd').length

test.before.each((context) => {
  context.fds = openFds()
  context.folder = temporary()
  context.work = openWorkDir(context.folder.path, CAPTURE_SOCKET)
  context.criu = fakeDump(join(context.work.path, CAPTURE_SOCKET))
})

test.after.each((context) => {
  context.work.remove()
  context.folder.remove()
})

/** Takes all images of a source, each by a reader of its own. */
async function takeAll(socket: Fd): Promise<Map<string, Buffer>> {
  const taken = new Map<string, Buffer>()
  const running: Promise<void>[] = []
  for await (const { name, body } of new CapturedImages(socket).images) {
    if (body.kind !== 'pipe') throw new Error('not a pipe')
    running.push(
      readToEnd(body.fd).then((bytes) => {
        closeFd(body.fd)
        taken.set(name, bytes)
      }),
    )
  }
  await Promise.all(running)
  return taken
}

async function failsWith(code: FaultCode, taking: Promise<unknown>): Promise<void> {
  const error = await taking.then(
    () => undefined,
    (reason: unknown) => reason,
  )
  assert.instance(error, Fault)
  assert.is((error as Fault).code, code)
}

test('the conversation of a real dump', async ({ work, criu }) => {
  const images = takeAll(await acceptUnix(work.listener))
  let names = 0
  for (const line of talk('dump')) {
    if (line.kind === 'sent') criu.raw(line.bytes)
    if (line.kind !== 'pipe') continue
    const [out, into] = makePipe()
    criu.raw(Buffer.alloc(1), [out])
    closeFd(out)
    closeFd(into)
    names++
  }
  criu.close()
  assert.is((await images).size, names)
  assert.ok((await images).has('inventory.img'))
})

test('several images are open at once and come interleaved', async ({ work, criu }) => {
  const taking = acceptUnix(work.listener).then(takeAll)
  const bytes = pattern(300_000)
  const pipes = ['a.img', 'b.img', 'c.img', 'd.img'].map((name) => criu.open(name))
  const { writeAll } = await import('../../lib/kernel/transfer.ts')
  for (let at = 0; at < bytes.length; at += 10_000) {
    for (const pipe of pipes) await writeAll(pipe, bytes.subarray(at, at + 10_000))
  }
  for (const pipe of pipes) closeFd(pipe)
  criu.close()
  const taken = await taking
  assert.is(taken.size, 4)
  for (const got of taken.values()) assert.ok(got.equals(bytes))
})

test('a pipe closed without a byte is an empty image', async ({ work, criu }) => {
  const taking = acceptUnix(work.listener).then(takeAll)
  await criu.image('empty.img', Buffer.alloc(0))
  criu.close()
  assert.equal([...(await taking).entries()], [['empty.img', Buffer.alloc(0)]])
})

test('two requests in one write', async ({ work, criu }) => {
  const taking = acceptUnix(work.listener).then(takeAll)
  const [out, into] = makePipe()
  criu.raw(Buffer.concat([encodeRequest('one.img'), encodeRequest('two.img')]))
  criu.raw(Buffer.alloc(1), [out])
  closeFd(out)
  closeFd(into)
  criu.close()
  await failsWith('CRIU_PROTOCOL', taking)
})

test('the request and its descriptor in one write', async ({ work, criu }) => {
  const taking = acceptUnix(work.listener).then(takeAll)
  const [out, into] = makePipe()
  criu.raw(Buffer.concat([encodeRequest('one.img'), Buffer.alloc(1)]), [out])
  closeFd(out)
  closeFd(into)
  criu.close()
  await failsWith('CRIU_PROTOCOL', taking)
})

for (const name of [
  '../evil.img',
  '/etc/evil.img',
  'a/b.img',
  '..',
  '.',
  '',
  '.hidden.img',
  'a\0b.img',
  'x'.repeat(129),
]) {
  test(`the name ${JSON.stringify(name).slice(0, 24)} is refused`, async ({ work, criu }) => {
    const taking = acceptUnix(work.listener).then(takeAll)
    criu.raw(encodeRequest(name))
    await failsWith('NAME', taking)
    criu.close()
  })
}

test('a request that is too long', async ({ work, criu }) => {
  const taking = acceptUnix(work.listener).then(takeAll)
  criu.raw(Buffer.from('ffffff7f', 'hex'))
  await failsWith('CRIU_PROTOCOL', taking)
  criu.close()
})

test('a request that is no protobuf', async ({ work, criu }) => {
  const taking = acceptUnix(work.listener).then(takeAll)
  criu.raw(Buffer.from('04000000ffffffff', 'hex'))
  await failsWith('CRIU_PROTOCOL', taking)
  criu.close()
})

test('a request without a descriptor', async ({ work, criu }) => {
  const taking = acceptUnix(work.listener).then(takeAll)
  criu.raw(encodeRequest('one.img'))
  criu.raw(Buffer.alloc(1))
  await failsWith('CRIU_PROTOCOL', taking)
  criu.close()
})

test('two descriptors for one request', async ({ work, criu, fds }) => {
  const taking = acceptUnix(work.listener).then(takeAll)
  const [out, into] = makePipe()
  criu.raw(encodeRequest('one.img'))
  criu.raw(Buffer.alloc(1), [out, out])
  await failsWith('CRIU_PROTOCOL', taking)
  criu.close()
  closeFd(out)
  closeFd(into)
  assert.is(openFds(), fds + 1, 'only the listener is open')
})

test('a descriptor that is not the read end of a pipe', async ({ work, criu, fds }) => {
  criu.close()
  closeFd(await acceptUnix(work.listener))
  const [out, into] = makePipe()
  const strangers = strangeFds()
  for (const [what, fd] of Object.entries({ 'a write end': into, ...strangers.fds })) {
    const next = fakeDump(join(work.path, CAPTURE_SOCKET))
    const taking = acceptUnix(work.listener).then(takeAll)
    next.raw(encodeRequest('one.img'))
    next.raw(Buffer.alloc(1), [fd])
    const { message } = await rejectsFault('CRIU_PROTOCOL', taking, what)
    assert.is(message, 'a request with a descriptor that is not the read end of a pipe')
    next.close()
  }
  for (const end of [out, into]) closeFd(end)
  strangers.close()
  assert.is(openFds(), fds + 1, 'only the listener is open')
})

test('a client that dies in a request, and between request and descriptor', async ({ work, criu }) => {
  const taking = acceptUnix(work.listener).then(takeAll)
  criu.raw(encodeRequest('one.img').subarray(0, 7))
  criu.close()
  await failsWith('CRIU_PROTOCOL', taking)
  const next = fakeDump(join(work.path, CAPTURE_SOCKET))
  const again = acceptUnix(work.listener).then(takeAll)
  next.raw(encodeRequest('one.img'))
  next.close()
  await failsWith('CRIU_PROTOCOL', again)
})

test('destroy ends the iteration with its reason and closes the socket', async ({ work, criu, fds }) => {
  const source = new CapturedImages(await acceptUnix(work.listener))
  const iterating = (async () => {
    for await (const _ of source.images);
  })()
  source.destroy(new Fault('TIMEOUT', 'enough'))
  await failsWith('TIMEOUT', iterating)
  criu.close()
  const next = fakeDump(join(work.path, CAPTURE_SOCKET))
  const unstarted = new CapturedImages(await acceptUnix(work.listener))
  unstarted.destroy(new Fault('TIMEOUT', 'enough'))
  await failsWith('TIMEOUT', unstarted.images[Symbol.asyncIterator]().next())
  next.close()
  assert.is(openFds(), fds + 1, 'only the listener is open')
})

test.run()
