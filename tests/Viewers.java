import ij.IJ;
import ij.ImageJ;
import ij.ImagePlus;
import ij.plugin.FolderOpener;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.Arrays;
import java.util.zip.CRC32;

/**
 * What ImageJ and Bio-Formats make of files, for tests: one JVM answers all questions.
 *
 * <p>A line of standard input is a program, a path, and which planes (0,7,19 or "all"), with tabs between them. A line of
 * standard output is the answer: number of planes, width, height, bits, and the CRC-32 of each plane that was asked for, most
 * significant byte first; or "error" and the reason.
 */
public class Viewers {
  public static void main(String[] args) throws Exception {
    java.io.PrintStream answers = System.out;
    System.setOut(System.err);
    if (!java.awt.GraphicsEnvironment.isHeadless()) new ImageJ();
    BufferedReader questions = new BufferedReader(new InputStreamReader(System.in));
    for (String line; (line = questions.readLine()) != null; ) {
      String[] words = line.split("\t");
      String answer;
      try {
        answer = answer(words[0], words[1], words[2]);
      } catch (Throwable error) {
        answer = "error\t" + error;
      }
      answers.println(answer.replace('\n', ' '));
      answers.flush();
    }
    System.exit(0);
  }

  static String answer(String program, String path, String planes) throws Exception {
    switch (program) {
      case "imagej": // File > Open
        return planes(IJ.openImage(path), planes);
      case "imagej-virtual": // File > Import > TIFF Virtual Stack
        return planes(IJ.openVirtual(path), planes);
      case "imagej-sequence": // File > Import > Image Sequence
        return planes(FolderOpener.open(path, ""), planes);
      case "imagej-virtual-sequence": // the same, "Use virtual stack" ticked
        return planes(FolderOpener.open(path, "virtual"), planes);
      case "bioformats":
        return Formats.planes(path, planes);
      case "bioformats-plugin": // Plugins > Bio-Formats > Importer, "Use virtual stack" ticked
        return planes(Formats.importer(path), planes);
      default:
        throw new IllegalArgumentException(program);
    }
  }

  static String planes(ImagePlus image, String planes) {
    if (image == null) throw new IllegalArgumentException("not opened");
    if (!java.awt.GraphicsEnvironment.isHeadless()) image.show();
    StringBuilder answer = new StringBuilder();
    int count = image.getStackSize();
    answer.append(count + "\t" + image.getWidth() + "\t" + image.getHeight() + "\t" + image.getBitDepth());
    for (int plane : which(planes, count)) {
      image.setSlice(plane + 1);
      answer.append("\t" + crc(bytes(image.getProcessor().getPixels())));
    }
    image.changes = false;
    image.close();
    return answer.toString();
  }

  static int[] which(String planes, int count) {
    if (planes.equals("all")) return java.util.stream.IntStream.range(0, count).toArray();
    return Arrays.stream(planes.split(",")).mapToInt(Integer::parseInt).toArray();
  }

  static byte[] bytes(Object pixels) {
    if (pixels instanceof byte[]) return (byte[]) pixels;
    short[] numbers = (short[]) pixels;
    java.nio.ByteBuffer buffer = java.nio.ByteBuffer.allocate(2 * numbers.length);
    buffer.asShortBuffer().put(numbers);
    return buffer.array();
  }

  static String crc(byte[] bytes) {
    CRC32 crc = new CRC32();
    crc.update(bytes);
    return Long.toString(crc.getValue());
  }

  /** Bio-Formats, in a class of its own: without its jar the rest still works, but compiles only with it. */
  static class Formats {
    static {
      loci.common.DebugTools.setRootLevel("WARN");
    }

    static String planes(String path, String planes) throws Exception {
      loci.formats.ImageReader reader = new loci.formats.ImageReader();
      loci.formats.meta.IMetadata metadata = new loci.formats.ome.OMEXMLMetadataImpl();
      reader.setMetadataStore(metadata);
      reader.setId(path);
      try {
        StringBuilder answer = new StringBuilder();
        int count = reader.getSizeZ();
        if (count != reader.getImageCount()) throw new IllegalArgumentException("not all along z");
        int bits = 8 * loci.formats.FormatTools.getBytesPerPixel(reader.getPixelType());
        answer.append(count + "\t" + reader.getSizeX() + "\t" + reader.getSizeY() + "\t" + bits);
        for (int plane : which(planes, count)) {
          byte[] pixels = reader.openBytes(plane);
          if (bits == 16 && reader.isLittleEndian())
            for (int i = 0; i < pixels.length; i += 2) {
              byte low = pixels[i];
              pixels[i] = pixels[i + 1];
              pixels[i + 1] = low;
            }
          answer.append("\t" + crc(pixels));
        }
        return answer.toString();
      } finally {
        reader.close();
      }
    }

    static ImagePlus importer(String path) throws Exception {
      loci.plugins.in.ImporterOptions options = new loci.plugins.in.ImporterOptions();
      options.setId(path);
      options.setVirtual(true);
      options.setQuiet(true);
      options.setWindowless(true);
      return loci.plugins.BF.openImagePlus(options)[0];
    }
  }
}
