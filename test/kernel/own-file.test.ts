import { chownSync, closeSync, constants, linkSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { check } from '../../lib/kernel/fd.ts'
import { mkfifo } from '../../lib/kernel/libc.ts'
import { openOwnFile, openRegularFile } from '../../lib/kernel/own-file.ts'
import { userName } from '../../lib/kernel/trusted-path.ts'
import { throwsFault } from '../expect.ts'
import { temporary } from '../support/run.ts'
import { openFds } from './fds.ts'

const test = suite<{ dir: string; remove: () => void }>('kernel/own-file')

test.before.each((context) => {
  const { path, remove } = temporary()
  Object.assign(context, { dir: path, remove })
})
test.after.each(({ remove }) => remove())

const { O_RDONLY, O_WRONLY, O_RDWR, O_CREAT } = constants

test('a file of ours is opened, made where that is asked for, and what open(2) says is passed on', ({ dir }) => {
  const file = join(dir, 'file')
  assert.throws(() => openOwnFile(file, O_RDONLY), /ENOENT/)
  closeSync(openOwnFile(file, O_WRONLY | O_CREAT))
  writeFileSync(file, 'x')
  const fd = openOwnFile(file, O_RDONLY)
  assert.is(readFileSync(fd, 'utf8'), 'x')
  closeSync(fd)
  assert.throws(() => openOwnFile(join(file, 'below'), O_RDONLY), /ENOTDIR/)
})

test('nothing waits at a FIFO, follows a link or touches a device, and no descriptor is left', ({ dir }) => {
  const before = openFds()
  writeFileSync(join(dir, 'file'), 'x')
  symlinkSync('file', join(dir, 'link'))
  check(mkfifo(join(dir, 'fifo'), 0o600), 'mkfifo')
  for (const flags of [O_RDONLY, O_WRONLY, O_RDWR, O_WRONLY | O_CREAT]) {
    for (const path of [join(dir, 'link'), join(dir, 'fifo'), dir, '/dev/null']) {
      throwsFault('EXISTS', () => openOwnFile(path, flags), `${path} ${flags}`)
    }
  }
  for (const path of [join(dir, 'fifo'), dir, '/dev/null']) throwsFault('EXISTS', () => openRegularFile(path), path)
  closeSync(openRegularFile(join(dir, 'link')))
  assert.is(openFds(), before)
})

test('a file that has a second name is read, and not written', ({ dir }) => {
  writeFileSync(join(dir, 'file'), 'x')
  linkSync(join(dir, 'file'), join(dir, 'second'))
  closeSync(openOwnFile(join(dir, 'second'), O_RDONLY))
  for (const flags of [O_WRONLY, O_RDWR]) {
    assert.match(throwsFault('EXISTS', () => openOwnFile(join(dir, 'second'), flags)).message, /another name/)
  }
})

if (process.geteuid?.() === 0) {
  test('a file of another user is not ours', ({ dir }) => {
    const file = join(dir, 'file')
    writeFileSync(file, '1\n', { mode: 0o666 })
    chownSync(file, 65534, 0)
    for (const flags of [O_RDONLY, O_WRONLY]) {
      const fault = throwsFault('EXISTS', () => openOwnFile(file, flags))
      assert.is(fault.message, `${file} belongs to ${userName(65534)}`)
    }
    closeSync(openRegularFile(file))
  })
}

test.run()
