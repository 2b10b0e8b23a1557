/**
 * Those who connect as a criu does and then say nothing, and a reader that takes nothing: each wait ends, is named, and
 * leaves nothing behind.
 */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { CAPTURE_SOCKET } from '../../lib/criu/capture.ts'
import { DUMP_SOCKET } from '../../lib/criu-remote/local-wire.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { readSome, writeAll } from '../../lib/kernel/transfer.ts'
import { connectUnix } from '../../lib/kernel/unix.ts'
import { impatient, within } from '../expect.ts'
import { type Daemons, daemons } from '../support/daemons.ts'
import { type FakeDump, fakeDump } from '../support/fake-criu.ts'
import { fakeRemote } from '../support/fake-remote-criu.ts'
import { eventually, start, temporary } from '../support/run.ts'

const test = suite('scripts/silence')
const timeout = ['--timeout', '1']

/** Whoever was left reads the end of its socket, or that it was broken. */
async function isLeft({ socket }: FakeDump): Promise<void> {
  const got = await within(
    readSome(socket, Buffer.alloc(1)).catch(() => 0),
    'the end of the socket',
  )
  assert.is(got, 0)
}

async function played(body: (all: Daemons) => Promise<void>): Promise<void> {
  const all = await daemons({ proxy: timeout })
  try {
    await body({ ...all, proxy: impatient(all.proxy), cache: impatient(all.cache) })
    const left = (): boolean => readdirSync(all.source).some((name) => /\.(held|lock|go|drop|owed)/.test(name))
    await eventually(() => !left() || undefined, 'the end of gates and verdicts', 10_000)
  } finally {
    await all.stop()
  }
}

test('a criu that connects and says nothing', () =>
  played(async ({ proxy, dump }) => {
    const silent = dump()
    await proxy.says(/failed: a criu that has connected began no dump within 1 s/)
    await isLeft(silent)
    silent.close()
  }))

test('a criu that falls silent in the middle of an image, and one that does between two', () =>
  played(async ({ proxy, cache, dump }) => {
    for (const inTheMiddle of [true, false]) {
      const silent = dump()
      const pipe = silent.open('pages-1.img')
      await writeAll(pipe, Buffer.alloc(1000))
      if (!inTheMiddle) closeFd(pipe)
      await cache.says(/the source gave up: criu sent nothing for 1 s/)
      await proxy.says(/failed: criu sent nothing for 1 s/)
      await isLeft(silent)
      if (inTheMiddle) {
        await assertBroken(writeAll(pipe, Buffer.alloc(2 ** 20)))
        closeFd(pipe)
      }
      silent.close()
    }
  }))

async function assertBroken(writing: Promise<void>): Promise<void> {
  const outcome = await within(
    writing.then(
      () => 'written',
      () => 'broken',
    ),
  )
  assert.is(outcome, 'broken', 'nobody reads the pipe any more')
}

test('a slow criu is not a silent one', () =>
  played(async ({ cache, dump }) => {
    const slow = dump()
    const pipe = slow.open('pages-1.img')
    for (let time = 0; time < 12; time++) {
      await writeAll(pipe, Buffer.alloc(10))
      await new Promise((resolve) => setTimeout(resolve, 300))
    }
    closeFd(pipe)
    await slow.image('inventory.img', Buffer.from('inventory'))
    slow.close()
    await cache.says(/ sealed: 2 images/)
  }))

test('a criu that has written all and waits for nobody, but does not end: its tasks decide', () =>
  played(async ({ proxy, cache, dump }) => {
    const silent = dump()
    await silent.image('pages-1.img', Buffer.alloc(1000))
    await silent.image('inventory.img', Buffer.from('inventory'))
    await cache.says(/ sealed: 2 images/)
    await proxy.says(/handed over/)
    await isLeft(silent)
    silent.close()
  }))

test('a criu --remote that pushes its list and says nothing, and one that falls silent in the middle of an image', () =>
  played(async ({ source, proxy }) => {
    const mute = fakeRemote(join(source, DUMP_SOCKET), 'mute')
    await mute.push()
    await proxy.says(/the dump of "mute" failed: a criu that has connected began no dump within 1 s/)
    const half = fakeRemote(join(source, DUMP_SOCKET), 'half')
    await half.push()
    const pipe = await half.open('pages-1.img')
    await writeAll(pipe, Buffer.alloc(1000))
    await proxy.says(/failed: criu sent nothing for 1 s/)
    await assertBroken(writeAll(pipe, Buffer.alloc(2 ** 20)))
    closeFd(pipe)
  }))

test('a criu that is silent to dump-to-stdout --listen delays nobody; one that falls silent ends it', async () => {
  const { path, remove } = temporary()
  const dumping = start('dump-to-stdout', ['-v', '--listen', '-D', path, ...timeout])
  await dumping.says(/listening/)
  const [mute, silent] = [connectUnix(join(path, CAPTURE_SOCKET)), fakeDump(join(path, CAPTURE_SOCKET))]
  const pipe = silent.open('pages-1.img')
  const ran = await within(dumping.ended)
  assert.is(ran.code, 6, ran.stderr)
  assert.match(ran.stderr, /error: criu sent nothing for 1 s/)
  await isLeft(silent)
  for (const fd of [mute, silent.socket, pipe]) closeFd(fd)
  remove()
})

test('a reader of dump-to-stdout that takes nothing while the tasks are frozen', async () => {
  const { path, remove } = temporary()
  const line = `dump-to-stdout -v --listen -D ${path} --timeout 1 | sleep 20`
  const dumping = start('bash', ['-c', `${line} & wait $!; exit \${PIPESTATUS[0]}`])
  await dumping.says(/listening/)
  const dump = fakeDump(join(path, CAPTURE_SOCKET))
  const pipe = dump.open('pages-1.img')
  const broken = assertBroken(writeAll(pipe, Buffer.alloc(32 * 2 ** 20)))
  await dumping.says(/error: the reader of stdout took nothing for 1 s/)
  await broken
  await isLeft(dump)
  closeFd(pipe)
  dump.close()
  await dumping.stop('SIGKILL')
  remove()
})

test.run()
