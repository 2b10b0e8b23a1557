import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Fault } from '../../lib/fault.ts'
import { type Fd, makePipe } from '../../lib/kernel/fd.ts'
import * as libc from '../../lib/kernel/libc.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { readSome, writeAll } from '../../lib/kernel/transfer.ts'
import { acceptSpeaker, acceptUnix, connectUnix, listenUnix, receiveWithFds } from '../../lib/kernel/unix.ts'
import { reasonOf, rejectsFault, throwsFault, turns, within } from '../expect.ts'
import { sendWithFds } from '../support/fake-criu.ts'
import { root, run, temporary } from '../support/run.ts'
import { asNobody, isRoot, openFds, socketPair } from './fds.ts'

const test = suite<{ dir: string; remove: () => void }>('kernel/unix')

test.before.each((context) => {
  const { path, remove } = temporary()
  context.dir = path
  context.remove = remove
})
test.after.each((context) => context.remove())

/** Sends and receives one byte. */
async function talk(from: Fd, to: Fd): Promise<void> {
  await writeAll(from, Buffer.from('!'), { socket: true })
  const got = Buffer.alloc(2)
  assert.is(await within(readSome(to, got)), 1)
  assert.is(got.toString('latin1', 0, 1), '!')
}

test('a socket has mode 0600, leaves nothing else, and carries bytes both ways', async ({ dir }) => {
  const umask = process.umask()
  const path = join(dir, 's.sock')
  const listener = listenUnix(path)
  assert.ok(lstatSync(path).isSocket())
  assert.is(lstatSync(path).mode & 0o777, 0o600)
  assert.equal(readdirSync(dir), ['s.sock'])
  assert.is(process.umask(), umask)
  const client = connectUnix(path)
  const server = await within(acceptUnix(listener))
  await talk(client, server)
  await talk(server, client)
  for (const fd of [client, server, listener]) closeFd(fd)
})

test('accepting waits for a client, and is released by closing', async ({ dir }) => {
  const listener = listenUnix(join(dir, 's.sock'))
  const waiting = acceptUnix(listener)
  await turns()
  const client = connectUnix(join(dir, 's.sock'))
  closeFd(await within(waiting))
  closeFd(client)
  const reason = new Error('enough')
  const second = acceptUnix(listener)
  closeFd(listener, reason)
  assert.is(await reasonOf(second), reason)
})

test('a stale socket is replaced', async ({ dir }) => {
  const path = join(dir, 's.sock')
  closeFd(listenUnix(path))
  assert.ok(existsSync(path))
  throwsFault('LINK', () => connectUnix(path))
  const listener = listenUnix(path)
  const client = connectUnix(path)
  const server = await within(acceptUnix(listener))
  await talk(client, server)
  for (const fd of [client, server, listener]) closeFd(fd)
})

test('a live socket is refused and goes on listening', async ({ dir }) => {
  const path = join(dir, 's.sock')
  const listener = listenUnix(path)
  const before = openFds()
  throwsFault('EXISTS', () => listenUnix(path))
  assert.is(openFds(), before, 'a descriptor is left')
  assert.equal(readdirSync(dir), ['s.sock'])
  closeFd(await within(acceptUnix(listener)), new Error('the probe of the refused one'))
  const client = connectUnix(path)
  const server = await within(acceptUnix(listener))
  await talk(client, server)
  for (const fd of [client, server, listener]) closeFd(fd)
})

test('what is no socket is refused and stays', ({ dir }) => {
  const path = join(dir, 'file')
  writeFileSync(path, 'precious')
  throwsFault('EXISTS', () => listenUnix(path))
  assert.is(readFileSync(path, 'utf8'), 'precious')
  mkdirSync(join(dir, 'directory'))
  throwsFault('EXISTS', () => listenUnix(join(dir, 'directory')))
  symlinkSync('nowhere', join(dir, 'link'))
  throwsFault('EXISTS', () => listenUnix(join(dir, 'link')))
  assert.is(readlinkSync(join(dir, 'link')), 'nowhere')
  assert.equal(readdirSync(dir).sort(), ['directory', 'file', 'link'])
})

test('a path of 107 bytes is the longest', async ({ dir }) => {
  const path = join(dir, 'x'.repeat(107 - dir.length - 1))
  assert.is(Buffer.byteLength(path), 107)
  const listener = listenUnix(path)
  const client = connectUnix(path)
  closeFd(await within(acceptUnix(listener)))
  closeFd(client)
  closeFd(listener)
  const before = openFds()
  assert.match(throwsFault('USAGE', () => listenUnix(`${path}x`)).message, '107 bytes')
  throwsFault('USAGE', () => connectUnix(`${path}x`))
  throwsFault('USAGE', () => listenUnix(join(dir, 'é'.repeat(50))), 'counted in bytes')
  assert.is(openFds(), before)
})

test('a directory that is not there is IO, and no descriptor is left', ({ dir }) => {
  const before = openFds()
  const umask = process.umask()
  throwsFault('IO', () => listenUnix(join(dir, 'no', 's.sock')))
  assert.match(throwsFault('LINK', () => connectUnix(join(dir, 'no.sock'))).message, 'ENOENT')
  assert.is(openFds(), before)
  assert.is(process.umask(), umask)
})

const forRoot = isRoot ? test : test.skip

forRoot('another user is closed unheard, ours is taken', async ({ dir }) => {
  const path = join(dir, 's.sock')
  const listener = listenUnix(path)
  chmodSync(dir, 0o755)
  throwsFault('IO', () => asNobody(() => connectUnix(path)), 'mode 0600')
  chmodSync(path, 0o666)
  const stranger = asNobody(() => connectUnix(path))
  const accepting = acceptUnix(listener)
  await turns()
  assert.is(libc.read(stranger, Buffer.alloc(1), 1), 0, 'the stranger is closed')
  const client = connectUnix(path)
  const server = await within(accepting)
  await talk(client, server)
  for (const fd of [stranger, client, server, listener]) closeFd(fd)
})

test('descriptors travel with their bytes, one to four of them', async () => {
  const [near, far] = await socketPair()
  for (let count = 1; count <= 4; count++) {
    const [out, into] = makePipe()
    const before = openFds()
    sendWithFds(near, Buffer.from('abc'), Array(count).fill(into))
    const buffer = Buffer.alloc(8)
    const { bytes, fds } = await within(receiveWithFds(far, buffer))
    assert.is(buffer.toString('latin1', 0, bytes), 'abc')
    assert.is(fds.length, count)
    assert.is(openFds(), before + count)
    closeFd(into)
    for (const fd of fds) {
      assert.match(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'), /flags:\s*0*2/, 'closed on exec')
      await writeAll(fd, Buffer.from('x'))
      closeFd(fd)
    }
    const got = Buffer.alloc(8)
    assert.is(await within(readSome(out, got)), count, 'each is the pipe that was sent')
    assert.is(await within(readSome(out, got)), 0)
    closeFd(out)
  }
  closeFd(near)
  closeFd(far)
})

test('more than four descriptors are refused and none is left open', async () => {
  const [near, far] = await socketPair()
  const [out, into] = makePipe()
  for (const count of [5, 6, 20, 253]) {
    const before = openFds()
    sendWithFds(near, Buffer.of(0), Array(count).fill(into))
    await rejectsFault('CRIU_PROTOCOL', receiveWithFds(far, Buffer.alloc(1)), `${count}`)
    assert.is(openFds(), before, `${count} descriptors`)
  }
  for (const fd of [near, far, out, into]) closeFd(fd)
})

test('bytes without descriptors, a short buffer, waiting, and the end', async () => {
  const [near, far] = await socketPair()
  const waiting = receiveWithFds(far, Buffer.alloc(2))
  await turns()
  sendWithFds(near, Buffer.from('abc'), [])
  assert.equal(await within(waiting), { bytes: 2, fds: [] })
  assert.equal(await within(receiveWithFds(far, Buffer.alloc(2))), { bytes: 1, fds: [] })
  closeFd(near)
  assert.equal(await within(receiveWithFds(far, Buffer.alloc(2))), { bytes: 0, fds: [] })
  closeFd(far)
})

test('the collector takes nothing away from under a system call', async () => {
  const hurry = ['--import', 'tsx', '--stress-scavenge=50', '--max-lazy']
  const ran = await run(process.execPath, [...hurry, join(root, 'test', 'kernel', 'many-messages.ts')])
  assert.is(`${ran.stdout}${ran.stderr}`, '0 wrong\n')
})

test('what is prepared is there before anybody can connect, and not where somebody else listens', ({ dir }) => {
  const path = join(dir, 's.sock')
  let seen: string[] | undefined
  const listener = listenUnix(path, () => {
    throwsFault('LINK', () => connectUnix(path))
    seen = readdirSync(dir)
    writeFileSync(join(dir, 'script'), '', { mode: 0o700 })
  })
  assert.not(seen?.includes('s.sock'))
  assert.equal(readdirSync(dir).sort(), ['s.sock', 'script'])
  assert.is(lstatSync(join(dir, 'script')).mode & 0o777, 0o700, 'the rights of a socket are for the socket')
  throwsFault('EXISTS', () =>
    listenUnix(path, () => {
      throw new Error('prepared in the place of another')
    }),
  )
  closeFd(listener)
  const refused = new Fault('IO', 'the disk is full')
  throwsFault('IO', () =>
    listenUnix(path, () => {
      throw refused
    }),
  )
  throwsFault('LINK', () => connectUnix(path))
})

test('a client that is silent holds up nobody who speaks, and is closed', async ({ dir }) => {
  const path = join(dir, 's.sock')
  const listener = listenUnix(path)
  const first = acceptSpeaker(listener)
  const [silent, left, speaker, late] = [connectUnix(path), connectUnix(path), connectUnix(path), connectUnix(path)]
  closeFd(left)
  await writeAll(speaker, Buffer.from('x'), { socket: true })
  const socket = await within(first)
  const word = Buffer.alloc(2)
  assert.is(await readSome(socket, word), 1)
  assert.is(await within(readSome(silent, word)), 0)
  for (const fd of [silent, speaker, late, socket, listener]) closeFd(fd)
})

test.run()
