// Looks names up as Java programs do, one after the other in one process, and prints what each is.
import java.net.InetAddress;
import java.net.UnknownHostException;
import java.util.Arrays;
import java.util.stream.Collectors;

class Lookup {
    public static void main(String[] names) {
        for (String name : names) {
            String told;
            try {
                told = Arrays.stream(InetAddress.getAllByName(name))
                    .map(InetAddress::getHostAddress).sorted().collect(Collectors.joining("+"));
            } catch (UnknownHostException error) {
                told = error.getMessage().replaceAll(".*: ", "").replace(' ', '-');
            }
            System.out.println(name + "=" + told);
        }
    }
}
