import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { readCriuCommand } from '../../lib/criu/command-line.ts'
import { temporary } from '../support/run.ts'

const test = suite('criu/command-line')

/** Reads the command of a process with this command line, in that directory. */
async function read(words: string[], cwd: string, open = cwd, what?: 'splits' | 'before' | 'leaves') {
  const script = `exec 9<'${open}'; echo; read -r line`
  const child = spawn('sh', ['-c', script, ...words], { cwd, stdio: ['pipe', 'pipe', 'ignore'] })
  try {
    await once(child.stdout, 'data')
    const found = readCriuCommand(child.pid ?? 0)
    assert.is(found?.pid, found && child.pid)
    if (what !== undefined) return found?.[what]
    return found && { action: found.action, tree: found.tree, directory: found.directory }
  } finally {
    child.stdin.end()
    await once(child, 'exit')
  }
}

test('action, tree and directory, in every spelling', async () => {
  const { path, remove } = temporary()
  const here = { tree: 7, directory: path }
  const cases: [string[], unknown][] = [
    [['criu', 'dump', '-t', '7', '-D', '.'], { action: 'dump', ...here }],
    [['criu', 'pre-dump', '-t7', `-D${path}`, '--page-server'], { action: 'pre-dump', ...here }],
    [['ld.so', '/usr/sbin/criu', 'dump', '--tree=7', `--images-dir=${path}`], { action: 'dump', ...here }],
    [['criu', 'dump', '--tree', '7'], { action: 'dump', ...here }],
    [['criu', 'dump', '--tre', '7', '--images', path], { action: 'dump', ...here }],
    [
      ['criu', 'dump', '--tree=7', `--im=${path}`, '--track-mem', 'x', '--inherit-fd', '3'],
      { action: 'dump', ...here },
    ],
    [['criu', 'dump', '-t', '1', '-t', '7', '--images-dir', join(path, '..'), '-D', path], { action: 'dump', ...here }],
    [['criu', 'dump', '-t', '7', '-D', '../it-went-there'], { action: 'dump', ...here }],
    [['criu', '-D', 'pre-dump', 'dump', '-t', '7'], { action: 'dump', ...here }],
    [['criu', '--images-dir', 'dump', '-o', 'dump', '-v4', 'pre-dump', '-t', '7'], { action: 'pre-dump', ...here }],
    [['criu', 'dump', '-t', '7', '-D', '/nowhere'], undefined],
    [['criu', 'restore', '-t', '7'], undefined],
    [['criu', 'dump'], undefined],
    [['criu', 'dump', '-t', 'x'], undefined],
    [['criu', 'dump', '-t'], undefined],
  ]
  for (const [words, expected] of cases) assert.equal(await read(words, path), expected, words.join(' '))
  const images = join(path, 'images')
  mkdirSync(images)
  for (const relative of ['images', './images/', '../images', '../x/../images']) {
    const words = ['criu', 'dump', '-t', '7', '-D', relative, '-W', path]
    assert.equal(await read(words, path, images), { action: 'dump', tree: 7, directory: images })
  }
  assert.is(await read(['criu', 'dump', '-t', '7', '-D', 'other', '-W', path], path, images), undefined)
  remove()
})

test('a criu that opens and closes files meanwhile', async () => {
  const { path, remove } = temporary()
  const busy = 'opendir D, "."; syswrite STDOUT, "\n"; while (1) { open F, "<", "/dev/null"; close F }'
  const words = ['dump', '-t', '7', '-D', path.slice(1), '-W', '/']
  const child = spawn('perl', ['-e', busy, '--', ...words], { cwd: path, stdio: ['ignore', 'pipe', 'ignore'] })
  try {
    await once(child.stdout, 'data')
    for (let time = 0; time < 1000; time++) assert.is(readCriuCommand(child.pid ?? 0)?.directory, path)
  } finally {
    child.kill('SIGKILL')
    await once(child, 'exit')
    remove()
  }
})

test('what it is told besides, in any beginning of an option that getopt takes', async () => {
  const readOne = async (what: 'splits' | 'before' | 'leaves', ...words: string[]) =>
    read(['criu', 'dump', '-t', '7', ...words], '/', '/', what)
  assert.is(await readOne('splits', '--stream', '--page-server'), true)
  assert.is(await readOne('splits', '--page-serv', '--strea'), true)
  assert.is(await readOne('splits', '--stream'), false)
  assert.is(await readOne('splits', '--page-server'), false)
  for (const word of ['-R', '--leave-running', '--leave-r', '-s', '-jR', '--leave-stopped']) {
    assert.is(await readOne('leaves', word), true, word)
  }
  assert.is(await readOne('leaves', '-D', '/usr/share', '-o/Rs', '-j', '--shell-job'), false)
  assert.is(await readOne('before', '-D', '/usr/share', '--prev-images-dir', '../bin'), '/usr/bin')
  assert.is(await readOne('before', '-D', '/usr/share', '--prev-images-dir=../bin'), '/usr/bin')
  assert.is(await readOne('before', '-D', '/usr/share', '--prev-images-dir', 'nowhere'), undefined)
  assert.is(await readOne('before', '-D', '/usr/share', '--pre-dump-mode', 'read'), undefined)
})

test('no such process', () => {
  assert.is(readCriuCommand(2 ** 22 + 1), undefined)
})

test.run()
