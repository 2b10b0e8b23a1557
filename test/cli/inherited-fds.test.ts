import { closeSync, openSync, readdirSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { inheritedFd, inheritedOutput, listenFd, listenFds } from '../../lib/cli/inherited-fds.ts'
import { throwsFault } from '../expect.ts'
import { run, temporary } from '../support/run.ts'

const test = suite('cli/inherited-fds')

test('an open descriptor is taken, whatever it is', () => {
  const fd = openSync('/dev/null', 'w')
  assert.is(inheritedFd('--status-fd', String(fd)), fd)
  closeSync(fd)
  const fault = throwsFault('USAGE', () => inheritedFd('--status-fd', String(fd)))
  assert.is(fault.message, `--status-fd: fd ${fd} is not open`)
  assert.is(fault.hint, `the program that starts this command must pass fd ${fd} on`)
})

test('one that is to be written to must be open for that', () => {
  const [read, write, both] = ['r', 'a', 'r+'].map((how) => openSync('/dev/null', how)) as [number, number, number]
  for (const fd of [write, both]) assert.is(inheritedOutput('--status-fd', String(fd)), fd)
  const fault = throwsFault('USAGE', () => inheritedOutput('--status-fd', String(read)))
  assert.is(fault.message, `--status-fd: fd ${read} is not open to write`)
  for (const fd of [read, write, both]) closeSync(fd)
  throwsFault('USAGE', () => inheritedOutput('--status-fd', String(read)))
})

test('not a number, or one of the first three', () => {
  for (const text of ['', 'x', '-1', '0', '1', '2', '3.5', '9'.repeat(10)]) {
    throwsFault('USAGE', () => inheritedFd('--status-fd', text), JSON.stringify(text))
  }
})

test("Node's own descriptors were not handed over", () => {
  let seen = 0
  for (const fd of readdirSync('/proc/self/fd').map(Number)) {
    const what = ((): string => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`)
      } catch {
        return ''
      }
    })()
    if (fd < 3 || !what.startsWith('anon_inode:')) continue
    seen++
    throwsFault('USAGE', () => inheritedFd('--status-fd', String(fd)), what)
  }
  assert.ok(seen > 0)
})

test('LISTEN_FDS counts only with our own LISTEN_PID', () => {
  assert.equal(listenFds(), [])
  process.env.LISTEN_FDS = '1'
  for (const pid of [undefined, '', '1', String(process.ppid)]) {
    if (pid === undefined) delete process.env.LISTEN_PID
    else process.env.LISTEN_PID = pid
    assert.is(listenFd(), undefined, pid)
  }
  process.env.LISTEN_PID = String(process.pid)
  for (const count of ['', 'x', '-1', '1001']) {
    process.env.LISTEN_FDS = count
    throwsFault('USAGE', listenFds, count)
  }
  process.env.LISTEN_FDS = '0'
  assert.is(listenFd(), undefined)
  delete process.env.LISTEN_FDS
  delete process.env.LISTEN_PID
})

test('what a child would be given is closed, but for what it shall have', async () => {
  const { path, remove } = temporary()
  const script = `
    import { closeInherited } from '${join(import.meta.dirname, '..', '..', 'lib', 'cli', 'inherited-fds.ts')}'
    import { spawnSync } from 'node:child_process'
    closeInherited([101])
    const { stdout } = spawnSync('ls', ['/proc/self/fd'], { encoding: 'utf8' })
    console.log(stdout.split('\\n').filter((fd) => Number(fd) > 90).join(' '))`
  const line = `exec node --import tsx --input-type=module -e "$SCRIPT" 100>${path}/a 101>${path}/b 102>${path}/c`
  const ran = await run('bash', ['-c', line], { env: { SCRIPT: script }, cwd: join(import.meta.dirname, '..', '..') })
  assert.is(ran.stdout.toString(), '101\n', ran.stderr)
  remove()
})

test.run()
