import { closeSync, openSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import {
  allows,
  asFd,
  check,
  duplicate,
  enlargePipe,
  type Fd,
  isPipe,
  isPipeEnd,
  makePipe,
  setNonBlocking,
} from '../../lib/kernel/fd.ts'
import * as libc from '../../lib/kernel/libc.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { throwsFault } from '../expect.ts'
import { root, run } from '../support/run.ts'
import { asNobody, isRoot, openFds, socketPair, strangeFds } from './fds.ts'

const test = suite('kernel/fd')

function flagsOf(fd: Fd): number {
  return Number.parseInt(/flags:\s*([0-7]+)/.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1] ?? '', 8)
}

/** Whether `bytes` is the largest power of two that fs.pipe-max-size allows. */
function systemsMost(bytes: number): boolean {
  const most = Number(readFileSync('/proc/sys/fs/pipe-max-size', 'utf8'))
  return bytes <= most && bytes > most / 2
}

test('check passes results on and turns errno into a Fault', () => {
  assert.is(check(0, 'x'), 0)
  assert.is(check(7, 'x'), 7)
  const gone = throwsFault('LINK', () => check(-libc.EPIPE, 'write'))
  assert.is(gone.message, 'write: the other end went away (EPIPE)')
  throwsFault('LINK', () => check(-libc.ECONNRESET, 'read'))
  const full = throwsFault('IO', () => check(-28, 'write'))
  assert.match(full.message, 'ENOSPC')
  assert.match(full.hint ?? '', 'make room')
  assert.is(throwsFault('IO', () => check(-9, 'read')).hint, undefined)
})

test('a pipe is non-blocking and closed on exec, and closing gives both ends back', () => {
  const before = openFds()
  const [out, into] = makePipe()
  for (const fd of [out, into]) {
    assert.is(flagsOf(fd) & libc.O_NONBLOCK, libc.O_NONBLOCK)
    assert.is(flagsOf(fd) & libc.O_CLOEXEC, libc.O_CLOEXEC)
  }
  assert.is(libc.read(out, Buffer.alloc(1), 1), -libc.EAGAIN)
  assert.is(libc.write(into, Buffer.from('x'), 1), 1)
  assert.is(libc.read(out, Buffer.alloc(1), 1), 1, 'out is the read end')
  closeFd(out)
  closeFd(into)
  assert.is(openFds(), before)
})

test('a duplicate is another number for the same file, closed on exec', () => {
  const [out, into] = makePipe()
  const second = duplicate(into)
  assert.is.not(second, into)
  assert.is(flagsOf(second) & libc.O_CLOEXEC, libc.O_CLOEXEC)
  closeFd(into)
  assert.is(libc.write(second, Buffer.from('x'), 1), 1)
  assert.is(libc.read(out, Buffer.alloc(2), 2), 1)
  closeFd(second)
  assert.is(libc.read(out, Buffer.alloc(1), 1), 0, 'the last write end is closed')
  closeFd(out)
  throwsFault('IO', () => duplicate(out))
})

test('a descriptor is made non-blocking and keeps its other flags', () => {
  const fd = asFd(openSync('/dev/null', 'a'))
  const before = flagsOf(fd)
  assert.is(before & libc.O_NONBLOCK, 0)
  setNonBlocking(fd)
  assert.is(flagsOf(fd), before | libc.O_NONBLOCK)
  closeFd(fd)
  throwsFault('IO', () => setNonBlocking(fd))
})

test('a pipe is enlarged, to what it says', () => {
  const [out, into] = makePipe()
  const least = libc.fcntl(into, libc.F_GETPIPE_SZ, 0)
  const bytes = enlargePipe(into)
  assert.ok(bytes > least, `${bytes} is more than ${least}`)
  assert.is(libc.fcntl(out, libc.F_GETPIPE_SZ, 0), bytes)
  assert.is(libc.write(into, Buffer.alloc(bytes + 1), bytes + 1), bytes)
  assert.ok(bytes === 4 * 2 ** 20 || systemsMost(bytes), `${bytes}`)
  closeFd(out)
  closeFd(into)
})

const forRoot = isRoot ? test : test.skip

forRoot('without rights a pipe becomes as large as the system lets it', () => {
  const [out, into] = makePipe()
  const bytes = asNobody(() => enlargePipe(into))
  assert.ok(systemsMost(bytes), `${bytes}`)
  assert.is(libc.fcntl(into, libc.F_GETPIPE_SZ, 0), bytes)
  closeFd(out)
  closeFd(into)
})

/** Uses up the pipe pages of a user without rights, and says what news there is before and after. */
const hoarder = `
const { enlargePipe, makePipe, newsOfSmallPipes } = await import(process.argv[1])
process.setuid(65533)
enlargePipe(makePipe()[0])
const news = [newsOfSmallPipes() ?? 'none']
for (let pipes = 0; pipes < 4000 && enlargePipe(makePipe()[0]) >= 2 ** 20; pipes++);
news.push(newsOfSmallPipes(), newsOfSmallPipes() ?? 'none')
console.log(news.join(' '))`

forRoot('a user whose pipes are small is told so, once', async () => {
  const path = join(root, 'lib', 'kernel', 'fd.ts')
  const ran = await run(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', hoarder, path], {
    cwd: root,
  })
  assert.match(ran.stdout.toString(), /^none \d+ none\n$/, ran.stderr)
  assert.ok(Number(ran.stdout.toString().split(' ')[1]) < 2 ** 20)
})

test('only a pipe is a pipe', async () => {
  const [out, into] = makePipe()
  const [client, server] = await socketPair()
  const file = openSync(import.meta.filename, 'r')
  assert.equal([out, into, client, server, file].map(isPipe), [true, true, false, false, false])
  throwsFault('IO', () => enlargePipe(asFd(file)))
  for (const fd of [out, into, client, server]) closeFd(fd)
  closeSync(file)
  assert.not(isPipe(out), 'a closed number is no pipe')
})

test('an end of a pipe is one by its kind and by what can be done with it', () => {
  const strangers = strangeFds()
  const [out, into] = makePipe()
  const fds = { 'read end': out, 'write end': into, ...strangers.fds }
  const found = Object.entries(fds).map(([name, fd]) => [name, isPipeEnd(fd, 'read'), isPipeEnd(fd, 'write')])
  assert.equal(
    found.filter(([, read, write]) => read || write),
    [
      ['read end', true, false],
      ['write end', false, true],
    ],
  )
  assert.ok(found.length > 8)
  for (const fd of [out, into]) closeFd(fd)
  assert.not(isPipeEnd(out, 'read'), 'a closed number is none')
  strangers.close()
})

test('what a descriptor allows is what it was opened for', () => {
  const strangers = strangeFds()
  const allowed = (fd: number): boolean[] => [allows(fd, 'read'), allows(fd, 'write')]
  const { fds } = strangers
  assert.equal(allowed(fds['a file to read']), [true, false])
  assert.equal(allowed(fds['a file to write']), [false, true])
  assert.equal(allowed(fds['a socket']), [true, true])
  assert.equal(allowed(fds['a FIFO both ways']), [true, true])
  assert.equal(allowed(fds['a FIFO by name']), [false, false])
  assert.equal(allowed(fds['a file for neither']), [false, false])
  assert.equal(allowed(-1), [false, false])
  strangers.close()
})

test.run()
